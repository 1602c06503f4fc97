// Package notify tells people what becomes of their releases: by e-mail, and
// programs by webhooks.
//
// It reads the farm's events by a number that it keeps, decides who is to be told
// ([Decide] has the rules, doc/notify.md has them for people), gathers what has one
// cause, and puts letters into a folder before it forgets why it wrote them. From
// there they are sent, and tried again for days while the mail server is away. Each
// webhook reads the events by a number of its own, so that one that is dead delays
// neither the others nor the letters.
//
// Everything is told at least once. A letter's Message-ID and a delivery's
// webhook-id stay the same however often it is sent.
package notify
