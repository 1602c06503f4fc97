(() => {
  const out = [];
  const say = (what, e) => out.push(what + (e ? ': ' + e.outerHTML.slice(0, 160) : ''));
  const all = s => [...document.querySelectorAll(s)];
  const shown = e => e.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const text = e => (e.textContent || '').trim();
  const name = e => (e.getAttribute('aria-label') || '').trim() ||
    (e.getAttribute('aria-labelledby') || '').split(/\s+/).map(i => document.getElementById(i)?.textContent || '').join(' ').trim() ||
    [...(e.labels || [])].map(text).join(' ') || (e.getAttribute('alt') || '').trim() ||
    [...e.querySelectorAll('[aria-label]')].map(x => x.getAttribute('aria-label')).join(' ') || text(e) || (e.title || '').trim();

  if (!document.documentElement.lang) say('the page has no language');
  if (!document.title.trim()) say('the page has no title');
  if (all('main').length !== 1) say('there is not one main');
  if (all('h1').length !== 1) say('there is not one h1');
  let level = 0;
  for (const h of all('h1,h2,h3,h4,h5,h6').filter(shown)) {
    const l = +h.tagName[1];
    if (l > level + 1) say('a heading skips a level', h);
    if (!text(h)) say('a heading is empty', h);
    level = l;
  }
  for (const s of ['nav', 'header', 'footer'])
    if (all('body > ' + s + ', body > header > ' + s).length > 1) say('several ' + s);
  for (const n of all('nav, section[role], [role=region], [role=log]')) if (!n.ariaLabel && !n.getAttribute('aria-labelledby')) say('a landmark has no name', n);
  for (const e of all('input:not([type=hidden]),select,textarea')) if (!name(e)) say('a field has no label', e);
  for (const e of all('a[href],button,summary')) if (!name(e)) say('a control has no name', e);
  for (const e of all('progress,meter,[role=progressbar]')) if (!name(e)) say('a gauge has no name', e);
  for (const e of all('img')) if (!e.hasAttribute('alt')) say('a picture has no alt', e);
  for (const e of all('svg')) if (e.closest('[aria-hidden=true]') === null && !(e.getAttribute('role') === 'img' && name(e))) say('a drawing has no name', e);
  for (const e of all('[tabindex]')) if (+e.getAttribute('tabindex') > 0) say('tab order is changed', e);
  for (const e of all('[aria-hidden=true] a[href], [aria-hidden=true] button, [aria-hidden=true] input')) say('a control is hidden from some', e);
  for (const t of all('table')) {
    if (!t.caption && !name(t).slice(0, 0) && !t.getAttribute('aria-label') && !t.getAttribute('aria-labelledby')) say('a table has no name', t);
    const heads = [...t.querySelectorAll('th')];
    if (!heads.length) say('a table has no heads', t);
    for (const h of heads) {
      if (!h.scope) say('a head has no scope', h);
      if (!text(h) && !h.ariaLabel) say('a head is empty', h);
    }
  }
  for (const e of all('[role=list] > :not([role=listitem]), ul > :not(li), ol > :not(li), dl > :not(dt):not(dd):not(div)')) say('a list holds something else', e);
  const ids = new Map();
  for (const e of all('[id]')) ids.set(e.id, (ids.get(e.id) || 0) + 1);
  for (const [id, n] of ids) if (n > 1) say('id ' + id + ' is used ' + n + ' times');
  for (const l of all('label[for]')) if (!document.getElementById(l.htmlFor)) say('a label is for nothing', l);
  for (const e of all('[style]')) say('a style stands inline', e);

  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    const wide = all('body *').filter(e => {
      const r = e.getBoundingClientRect();
      if (r.right <= root.clientWidth + 1 || !r.width) return false;
      for (let p = e.parentElement; p; p = p.parentElement)
        if (p !== root && p !== document.body && getComputedStyle(p).overflowX !== 'visible') return false;
      return true;
    });
    say('the page is ' + root.scrollWidth + ' wide and its window ' + root.clientWidth, wide[wide.length - 1]);
  }

  // Contrast of every text with what it stands on.
  const parse = c => {
    const m = c.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/);
    return m ? [+m[1], +m[2], +m[3], m[4] === undefined ? 1 : +m[4]] : null;
  };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const lum = c => {
    const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const canvas = matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
  const ground = e => {
    const layers = [];
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c && c[3] > 0) layers.push(c);
      if (c && c[3] === 1) break;
    }
    return layers.reduceRight((under, c) => over(c, under), canvas);
  };
  const seen = new Set();
  for (const e of all('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !shown(e) || e.closest('[aria-hidden=true], svg')) continue;
    const r = e.getBoundingClientRect();
    if (r.width < 2 || r.height < 2) continue;
    const s = getComputedStyle(e);
    const fg = parse(s.color);
    if (!fg) { say('colour ' + s.color + ' cannot be read', e); continue; }
    const bg = ground(e), a = lum(over(fg, bg)), b = lum(bg);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(s.fontSize), large = size >= 24 || size >= 18.66 && +s.fontWeight >= 700;
    const key = s.color + bg + large;
    if (ratio < (large ? 3 : 4.5) && !seen.has(key)) {
      seen.add(key);
      say('contrast is ' + ratio.toFixed(2) + ', ' + s.color + ' on ' + bg.slice(0, 3).map(Math.round), e);
    }
  }
  return out;
})()
