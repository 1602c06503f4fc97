'use strict';
// Pages are whole without this. It keeps times true and pages up to date, shows a
// log as it grows, and adds what needs a script: follow, copy, a key for search.
(() => {
  const $ = (s, e = document) => e.querySelector(s);
  const all = (s, e = document) => [...e.querySelectorAll(s)];
  const make = (tag, props) => Object.assign(document.createElement(tag), props);
  const parse = html => new DOMParser().parseFromString(html, 'text/html').body;

  // The words of ago and human.Duration.
  const ago = (at, now) => {
    const d = Math.abs(now - at) / 1000, past = now >= at;
    if (d < 60) return past ? 'just now' : 'in a moment';
    const s = d < 3600 ? Math.floor(d / 60) + ' min' : d < 172800 ? Math.floor(d / 3600) + ' h' : Math.floor(d / 86400) + ' days';
    if (d >= 60 * 86400) return new Date(at).toISOString().slice(0, 10);
    return past ? s + ' ago' : 'in ' + s;
  };
  const two = n => String(n).padStart(2, '0');
  const span = ms => {
    const s = Math.max(0, ms) / 1000;
    if (s < 9.95) return s.toFixed(1) + ' s';
    if (s < 59.5) return s.toFixed(0) + ' s';
    if (s < 3599.5) { const n = Math.round(s); return Math.floor(n / 60) + ' m ' + two(n % 60) + ' s'; }
    if (s < 86400) { const n = Math.floor(s / 60); return Math.floor(n / 60) + ' h ' + two(n % 60) + ' m'; }
    const n = Math.floor(s / 3600); return Math.floor(n / 24) + ' d ' + n % 24 + ' h';
  };
  const say = (e, text) => { if (e.textContent !== text) e.textContent = text; };
  const tick = () => {
    if (document.hidden) return;
    const now = Date.now();
    for (const e of all('time')) say(e, ago(Date.parse(e.dateTime), now));
    for (const e of all('.clock')) say(e, span(now - Date.parse(e.dataset.since)));
    for (const e of all('progress[data-since]')) e.value = Math.min(e.max, now - Date.parse(e.dataset.since));
  };
  setInterval(tick, 1000);
  document.addEventListener('visibilitychange', tick);

  // Makes what is shown into what came, and leaves alone what is the same: focus,
  // selection and what somebody has opened stay.
  const morph = (old, to) => {
    if (old.nodeType !== to.nodeType || old.nodeName !== to.nodeName || old.id !== to.id) return void old.replaceWith(to);
    if (old.nodeType !== 1) { if (old.data !== to.data) old.data = to.data; return; }
    for (const a of [...old.attributes]) if (!to.hasAttribute(a.name) && a.name !== 'open') old.removeAttribute(a.name);
    for (const a of to.attributes) if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
    let at = old.firstChild;
    for (const n of [...to.childNodes]) {
      const same = n.id && [...old.children].find(c => c.id === n.id);
      if (same && same !== at) old.insertBefore(same, at), morph(same, n);
      else if (at && (same || !at.id)) { const next = at.nextSibling; morph(at, n); at = next; }
      else old.insertBefore(n, at);
    }
    while (at) { const next = at.nextSibling; at.remove(); at = next; }
  };

  // The log.
  const log = $('#log'), keep = 5000;
  let follow = false, button;
  const bottom = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 40;
  const setFollow = on => {
    follow = on;
    if (button) button.setAttribute('aria-pressed', on);
    if (on) scrollTo(0, document.documentElement.scrollHeight);
  };
  const addLines = html => {
    $('#nolog')?.remove();
    const rows = document.createDocumentFragment();
    for (const r of [...parse(html).children]) {
      const old = document.getElementById(r.id);
      if (old) old.replaceWith(r); else rows.append(r);
    }
    log.append(rows);
    while (log.childElementCount > keep) log.firstElementChild.remove();
    if (follow) setFollow(true);
  };
  const gap = (first, last) => {
    const e = make('div', { className: 'gap' });
    e.append(make('a', { href: '/builds/' + log.dataset.build + '?from=' + first, textContent: 'Lines ' + first + ' to ' + last + ' are not shown' }));
    log.append(e);
  };
  // A link to a line that is not on the page leads to the page that has it.
  const line = () => {
    const m = /^#L(\d+)$/.exec(location.hash), at = $('#log, #found');
    if (!m || !at || document.getElementById('L' + m[1])) return;
    if (new URLSearchParams(location.search).get('line') !== m[1]) location.replace(location.pathname + '?line=' + m[1] + location.hash);
  };
  addEventListener('hashchange', line);
  line();

  // The stream.
  const live = document.body.dataset.live, said = $('#stream');
  if (live) {
    const es = new EventSource(live);
    const tell = text => { said.hidden = false; say(said, text); };
    es.onopen = () => tell('live');
    es.onerror = () => tell(es.readyState === 2 ? 'not live any more: load the page again' : 'reconnecting…');
    es.addEventListener('part', ev => {
      const part = parse(ev.data).firstElementChild, old = part && document.getElementById(part.id);
      if (old) morph(old, part), buttons();
    });
    es.addEventListener('lines', ev => { if (log) addLines(ev.data); });
    es.addEventListener('gap', ev => { if (log) gap(...ev.data.split(' ')); });
    es.addEventListener('end', ev => {
      es.close();
      tell('ended');
      if ($('#end')) $('#end').textContent = ev.data;
      if (follow) setFollow(true), setFollow(false);
      button?.remove();
    });
    addEventListener('pagehide', () => es.close());
    addEventListener('pageshow', ev => { if (ev.persisted) location.reload(); });
    if (log && 'follow' in log.dataset) {
      button = make('button', { type: 'button', textContent: 'Follow' });
      button.onclick = () => setFollow(!follow);
      $('.tools').append(button);
      setFollow(false);
      if (!location.hash && log.childElementCount) setFollow(true);
      let last = scrollY;
      addEventListener('scroll', () => {
        if (follow && scrollY < last - 5 && !bottom()) setFollow(false);
        last = scrollY;
      }, { passive: true });
    }
  }

  // Copy.
  const buttons = () => {
    for (const e of all('.command')) {
      if (e.nextElementSibling?.className === 'copy') continue;
      const b = make('button', { type: 'button', className: 'copy', textContent: 'Copy' });
      b.onclick = async () => {
        try { await navigator.clipboard.writeText(e.textContent); b.textContent = 'Copied'; } catch {
          getSelection().selectAllChildren(e);
          b.textContent = document.execCommand('copy') ? 'Copied' : 'Selected';
        }
        setTimeout(() => { b.textContent = 'Copy'; }, 2000);
      };
      e.after(b);
    }
  };
  buttons();

  // What was searched for stands out.
  const found = $('#found'), q = found?.dataset.q.toLowerCase();
  if (q) {
    for (const row of all('.hit', found)) {
      const walk = document.createTreeWalker(row, NodeFilter.SHOW_TEXT), texts = [];
      while (walk.nextNode()) if (walk.currentNode.parentElement.nodeName !== 'A') texts.push(walk.currentNode);
      for (let t of texts) {
        for (let i; (i = t.data.toLowerCase().indexOf(q)) >= 0;) {
          const hit = t.splitText(i);
          t = hit.splitText(q.length);
          const m = document.createElement('mark');
          hit.replaceWith(m);
          m.append(hit);
        }
      }
    }
  }

  addEventListener('keypress', ev => {
    if (ev.key !== '/' || ev.ctrlKey || ev.metaKey || ev.altKey || ev.target.closest('input, textarea, select')) return;
    ev.preventDefault();
    ($('#lq') || $('#q')).focus();
  });
})();
