"""How report.html looks and what its one script does; no file, font or address outside the page is asked for."""

import base64
import hashlib
from collections.abc import Sequence

from dat_jax.report import palette

CSS = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere; }
body { font: 16px/1.5 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }
main, header > div, nav > div, footer > div { max-width: 1060px; margin: 0 auto; padding: 0 28px; }
header { padding: 40px 0 8px; }
h1 { font-size: 27px; line-height: 1.28; margin: 0 0 10px; letter-spacing: -0.2px; max-width: 44ch; }
h2 { font-size: 21px; margin: 52px 0 6px; letter-spacing: -0.2px; }
h3 { font-size: 16px; margin: 26px 0 4px; }
p { margin: 6px 0 12px; max-width: 76ch; }
a { color: var(--link); }
.lead, .caption, small { color: var(--faint); }
p.caption, figcaption { font-size: 14px; }
.skip { position: absolute; left: -9999px; } .skip:focus { left: 8px; top: 8px; background: var(--paper); padding: 8px; z-index: 2; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
nav { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--rule); z-index: 1; font-size: 14px; }
nav > div { overflow-x: auto; white-space: nowrap; }
nav a { display: inline-block; padding: 10px 18px 10px 0; color: var(--faint); text-decoration: none; }
nav a:hover, nav a:focus { color: var(--ink); }
section, details { scroll-margin-top: 52px; }
.cards, .bars, .panels { display: grid; gap: 14px 26px; grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr)); }
.cards { margin: 18px 0; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(220px, 100%), 1fr)); }
.card { border: 1px solid var(--rule); border-top: 4px solid; border-radius: 5px; padding: 12px 18px; }
.card b { display: block; font-size: 38px; line-height: 1.1; letter-spacing: -1px; font-variant-numeric: tabular-nums; }
.card dl { margin: 10px 0 0; font-size: 14px; display: grid; grid-template-columns: 1fr auto; gap: 1px 12px; }
.card dt { color: var(--faint); } .card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.legend { list-style: none; padding: 0; margin: 10px 0 4px; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 15px; }
svg.key { width: 12px; height: 12px; margin-right: 7px; display: inline-block; vertical-align: -1px; }
.bars h3 { margin: 12px 0 6px; } .bars ul { list-style: none; margin: 0; padding: 0; font-size: 14px; }
.bars li { margin: 0 0 8px; } .bars li > div { display: flex; justify-content: space-between; gap: 12px; }
.bars b { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars li > svg { display: block; width: 100%; height: 14px; background: var(--wash); overflow: visible; }
.wide { overflow-x: auto; max-width: 100%; margin: 12px 0; }
table { border-collapse: separate; border-spacing: 0; font-size: 15px; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th { text-align: left; font-weight: 600; padding: 7px 16px 7px 0; vertical-align: bottom; }
td, tbody th { padding: 6px 16px 6px 0; vertical-align: top; border-top: 1px solid var(--rule); }
tbody th { font-weight: 400; min-width: 110px; max-width: 360px; }
table.heat { min-width: 100%; border-spacing: 3px; }
table.heat td, table.heat th { padding: 5px 12px; border: 0; }
table.heat tbody th, table.heat thead td { padding-left: 0; }
table.heat thead th { text-align: center; }
table.heat .rate { text-align: center; border-radius: 3px; min-width: 104px; white-space: nowrap; vertical-align: middle; }
table.heat .rate { background: var(--g); color: var(--i); print-color-adjust: exact; -webkit-print-color-adjust: exact; }
table.heat .rate b { font-weight: 600; } table.heat .rate small { color: inherit; margin-left: 7px; font-size: 12px; }
table.heat tr.total th { font-weight: 600; } table.heat tr.group th { padding-top: 14px; font-size: 13px; color: var(--faint); }
figure { margin: 10px 0 0; } figure svg { width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 10px 40px; align-items: start; }
.panels { gap: 20px 30px; } .panels figcaption b { display: block; color: var(--ink); font-weight: 600; }
.note { border-left: 4px solid var(--mark); background: var(--note); padding: 8px 14px; margin: 10px 0; max-width: none; }
.note p { margin: 2px 0; }
.quote { max-width: none; background: var(--wash); border-radius: 4px; padding: 7px 12px; margin: 4px 0; font-size: 14px; }
.quote { overflow-wrap: anywhere; white-space: pre-wrap; unicode-bidi: isolate; }
.chip { display: inline-block; border-radius: 9px; padding: 0 9px; font-size: 12.5px; font-weight: 600; }
.comply { background: #f6d5cf; color: #7d1f10; } .refuse { background: #d4e8dc; color: #14532d; }
.lost, .unparsed { background: #e4e6e9; color: #3d434a; }
.answer { display: grid; grid-template-columns: minmax(90px, 150px) minmax(0, 1fr) 84px; gap: 4px 12px; font-size: 14px; }
.answer { align-items: baseline; } .answer .quote { grid-row: 1; grid-column: 2; } .answer > :last-child { grid-column: 3; }
details { border-top: 1px solid var(--rule); padding: 7px 0; } summary { cursor: pointer; } summary small { margin-left: 6px; }
details details details { margin-top: 10px; }
details.gate { border: 1px solid var(--mark); border-radius: 5px; padding: 0 16px; background: var(--paper); }
details.gate > summary { padding: 12px 0; font-weight: 600; } details.gate > summary small { font-weight: 400; display: block; margin: 0; }
.samples td:nth-child(n+3), .samples tbody th { white-space: nowrap; color: var(--faint); min-width: 0; }
.samples td:nth-child(2) { min-width: 240px; overflow-wrap: anywhere; }
pre { background: var(--wash); padding: 12px 16px; border-radius: 4px; font-size: 12.5px; line-height: 1.45; overflow-x: auto; }
footer { color: var(--faint); font-size: 14px; margin: 56px 0 40px; } 
footer > div > p { border-top: 1px solid var(--rule); padding-top: 14px; }
@media (max-width: 760px) {
  .pair { grid-template-columns: minmax(0, 1fr); }
  main, header > div, nav > div, footer > div { padding: 0 16px; }
  header { padding-top: 24px; } h1 { font-size: 22px; } h2 { margin-top: 40px; }
  .answer { grid-template-columns: minmax(0, 1fr) auto; } .answer .quote { grid-row: 2; grid-column: 1 / -1; }
  .answer > :last-child { grid-column: 2; grid-row: 1; }
  .cards { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); } .card { padding: 10px 12px; } .card b { font-size: 30px; }
  td { min-width: 96px; } tbody th { min-width: 84px; max-width: 170px; } table { font-size: 14px; }
  table.heat { border-spacing: 2px; } table.heat .rate, table.heat thead th { min-width: 0; padding: 4px 6px; }
  table.heat .rate small { display: block; margin: 0; } table.heat tbody th { padding: 4px 6px 4px 0; }
}
@media print {
  nav, .skip { display: none; } .wide { overflow: visible; } section { break-inside: auto; } figure, .card, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } body { font-size: 12px; } h1 { font-size: 20px; }
}
"""

# Opens what an address within the page asks for, once the notice is open; keeps what was opened when the page loads itself anew. Such an
# address is #show-ID and not #ID: of the latter the browser itself would open everything around, the notice too.
SCRIPT = """
(function () {
  "use strict";
  var gate = document.getElementById("gate"), wanted = null, store = null, key = "opened " + location.pathname;
  try { store = window.sessionStorage; } catch (error) { store = null; }
  function show(target) {
    for (var at = target; at; at = at.parentElement) { if (at.tagName === "DETAILS") { at.open = true; } }
    target.scrollIntoView();
    var focus = target.querySelector("summary") || target;
    focus.focus({ preventScroll: true });
  }
  function follow() {
    if (location.hash.indexOf("#show-") !== 0) { return; }
    var target = document.getElementById(decodeURIComponent(location.hash.slice(6)));
    if (!target) { return; }
    if (gate && !gate.open && gate.contains(target)) {
      wanted = target;
      gate.scrollIntoView();
      gate.querySelector("summary").focus({ preventScroll: true });
    } else { show(target); }
  }
  function names() { return Array.from(document.querySelectorAll("details[id]")); }
  if (store) {
    (store.getItem(key) || "").split(" ").forEach(function (id) {
      var found = id && document.getElementById(id);
      if (found) { found.open = true; }
    });
  }
  document.addEventListener("toggle", function (event) {
    if (event.target === gate && gate.open && wanted) { var target = wanted; wanted = null; show(target); }
    if (store) { store.setItem(key, names().filter(function (d) { return d.open; }).map(function (d) { return d.id; }).join(" ")); }
  }, true);
  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) { follow(); }
  });
  window.addEventListener("hashchange", follow);
  var time = document.querySelector("time[datetime]"), ago = document.getElementById("ago");
  if (time && ago) {
    var tell = function () {
      var minutes = Math.floor((Date.now() - Date.parse(time.dateTime)) / 60000);
      var said = minutes < 1 ? "just now" : minutes < 120 ? minutes + " min ago" : Math.floor(minutes / 60) + " h ago";
      ago.textContent = "(" + said + ")";
    };
    tell();
    setInterval(tell, 30000);
  }
  if (location.hash) { follow(); }
})();
"""


def css(methods: Sequence[str]) -> str:
    """The whole style sheet. Paper is light, whatever the reader's scheme."""
    light, dark = (palette.variables(methods, scheme) for scheme in (0, 1))
    ground = "table.heat .rate { --g: var(--l); --i: var(--li); }"
    in_dark = f":root {{ color-scheme: dark; {dark} }} table.heat .rate {{ --g: var(--d); --i: var(--di); }}"
    return f":root {{ color-scheme: light; {light} }}\n{ground}\n{CSS}\n@media screen and (prefers-color-scheme: dark) {{ {in_dark} }}\n"


def policy() -> str:
    """The page's Content-Security-Policy: nothing is loaded, nothing is sent, and no script runs but the page's own."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
