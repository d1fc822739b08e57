"""How the page looks: one style sheet, light and dark, wide and narrow, on screen and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #faf8f4; --card: #ffffff; --ink: #24211d; --soft: #6a635a; --rule: #e5dfd4; --accent: #9c4a1f;
  --red: #b3271e; --green: #2f7d4f; --blue: #2f62b0; --alarm: #a4161a; --alarm-ink: #ffffff; --wash: #f3eee5;
  --g0: #f1d5ad; --g1: #e3a971; --g2: #cc7d42; --g3: #a25325; --g4: #6b2f14; --gx: #cbc4b8;
  --serif: "Iowan Old Style", "Charter", "Bitstream Charter", "Palatino Linotype", Palatino, Cambria, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161412; --card: #1e1b18; --ink: #ebe5db; --soft: #a69d90; --rule: #37322b; --accent: #eb9b6b;
    --red: #f0776c; --green: #74c495; --blue: #86aef0; --alarm: #c1272d; --wash: #26221e;
    --g0: #533722; --g1: #80502f; --g2: #b0703f; --g3: #dc9b60; --g4: #f8d6a8; --gx: #59534a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 var(--sans); }
main, header, footer, nav { max-width: 1136px; margin: 0 auto; padding: 0 clamp(18px, 4vw, 48px); }
p { margin: 0 0 1em; max-width: 68ch; }
h1, h2, h3 { font-family: var(--serif); font-weight: 600; line-height: 1.2; text-wrap: balance; }
h1 { font-size: clamp(2.1rem, 6vw, 3.1rem); letter-spacing: -.015em; margin: 0 0 .35em; overflow-wrap: anywhere; }
h2 { font-size: 1.65rem; letter-spacing: -.01em; margin: 0 0 .5em; }
h3 { font-size: 1.12rem; margin: 0 0 .3em; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: .18em; text-decoration-thickness: 1px; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 4px;
}
code { font: .86em var(--mono); overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); }
.alarm { background: var(--alarm); color: var(--alarm-ink); padding: 14px clamp(18px, 4vw, 48px); text-align: center; }
.alarm strong { letter-spacing: .02em; }

header { padding-top: clamp(36px, 7vw, 76px); }
.eyebrow { color: var(--accent); font-size: .8rem; font-weight: 600; letter-spacing: .13em; text-transform: uppercase;
  margin: 0 0 .7em; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 34px; margin: 0 0 30px; }
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: 1px; margin: 0 0 26px;
  padding: 0; background: var(--rule); border: 1px solid var(--rule); border-radius: 12px; overflow: hidden; }
.figures div { display: flex; flex-direction: column-reverse; justify-content: flex-end; background: var(--card);
  padding: 16px 20px 14px; }
.figures dt { color: var(--soft); font-size: .84rem; line-height: 1.35; }
.figures dd { margin: 0; font: 600 1.9rem/1.25 var(--serif); font-variant-numeric: tabular-nums lining-nums; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 0; padding: 0; font-size: .92rem; }
section { padding: clamp(16px, 2.4vw, 26px) 0 0; scroll-margin-top: 8px; }
section > h2 { border-top: 1px solid var(--rule); padding-top: clamp(26px, 4vw, 40px); }
.note { background: var(--wash); border-left: 3px solid var(--accent); border-radius: 0 8px 8px 0; padding: 10px 16px;
  margin: 0 0 12px; max-width: none; }

.scroll { overflow-x: auto; margin: 0 0 26px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums lining-nums; }
caption { text-align: left; padding: 14px 18px 6px; font-size: .9rem; }
caption span { display: inline-block; position: sticky; left: 18px;
  max-width: calc(min(100vw, 1136px) - 2 * clamp(18px, 4vw, 48px) - 40px); }
th, td { padding: 9px 12px; text-align: left; vertical-align: baseline; border-top: 1px solid var(--rule);
  white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .82rem; vertical-align: bottom; }
thead .group { text-align: center; padding-bottom: 0; } thead tr + tr th { padding-left: 12px; padding-right: 12px; }
th:first-child, td:first-child { padding-left: 18px; }
th:last-child, td:last-child { padding-right: 18px; }
tbody th { font-weight: 600; }
tfoot th, tfoot td { font-weight: 600; border-top: 2px solid var(--rule); }
.n { text-align: right; }
.words { white-space: normal; min-width: 15em; }
.chip { margin-left: 8px; } .withheld { color: var(--soft); text-align: center; }
.zero { color: var(--soft); }
td.bar { width: 22%; min-width: 120px; vertical-align: middle; }
.chip { display: inline-block; font-size: .74rem; font-weight: 500; line-height: 1.5; padding: 0 8px;
  border: 1px solid var(--rule); border-radius: 99px; color: var(--soft); }
.chip.proprietary { color: var(--alarm-ink); background: var(--alarm); border-color: var(--alarm); }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: -12px 0 26px; padding: 0;
  font-size: .84rem; color: var(--soft); }
.key li::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px;
  background: var(--swatch); }

.shares { display: block; width: 100%; height: 10px; border-radius: 3px; }
.g0 { fill: var(--g0); } .g1 { fill: var(--g1); } .g2 { fill: var(--g2); } .g3 { fill: var(--g3); }
.g4 { fill: var(--g4); } .gx { fill: var(--gx); } .one { fill: var(--accent); } .two { fill: var(--gx); }

.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 290px), 1fr)); gap: 18px;
  margin: 0 0 26px; }
.plots figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 16px 18px 10px; }
.plots figcaption { font-size: .84rem; line-height: 1.45; margin: 0 0 4px; min-height: 4.4em; }
.plots figcaption b { display: block; font: 600 1.05rem/1.35 var(--serif); color: var(--ink); }
.plots svg { display: block; width: 100%; height: auto; overflow: visible; }
.plots text { font: 11.5px var(--sans); fill: var(--soft); }
.plots .name { fill: var(--ink); font-weight: 600; } .plots .name.proprietary { fill: var(--red); }
.plots .value { font-variant-numeric: tabular-nums; }
.base { stroke: var(--rule); fill: none; } .limit { stroke: var(--alarm); stroke-dasharray: 2 3; fill: none; }
.histogram { fill-opacity: .3; stroke-width: 1; stroke-linejoin: round; } .median { stroke-width: 2; fill: none; }
.plain { fill: var(--accent); stroke: var(--accent); } .red { fill: var(--red); stroke: var(--red); }
.green { fill: var(--green); stroke: var(--green); } .blue { fill: var(--blue); stroke: var(--blue); }
.histogram.red, .histogram.green, .histogram.blue { fill-opacity: .16; }

.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .line.real { stroke: var(--blue); }
.line.fake { stroke: var(--accent); } .plots .name.real { fill: var(--blue); }
.plots .name.fake { fill: var(--accent); }
.band { fill: var(--blue); fill-opacity: .18; stroke: none; }

.groups { --thumb: 119px; display: flex; flex-wrap: wrap; gap: 28px 36px; margin: 0 0 26px; }
.groups > div { max-width: 100%; flex: 0 0 auto; }
.sheet { display: flex; flex-wrap: wrap; gap: 12px; margin: 0; padding: 0; list-style: none; }
.sheet li { width: var(--thumb); }
.sheet figure, .pair figure { margin: 0; min-width: 0; }
.sheet img, .pair img { display: block; width: 100%; aspect-ratio: 1; height: auto; object-fit: contain;
  background: #000; border-radius: 8px; }
.sheet figcaption, .pair figcaption { font-size: .74rem; line-height: 1.4; padding-top: 5px; overflow-wrap: anywhere; }
.sheet code, .pair code { font-size: .95em; }
.heading { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 12px; margin: 0 0 10px; max-width: 68ch;
  min-width: min(100%, 250px); }
.heading h3, .heading p { margin: 0; } .heading p { font-size: .88rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 18px; margin: 0;
  padding: 0 0 26px; list-style: none; }
.pair { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 14px; }
.pair > div { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
.pair p { margin: 0 0 10px; font-size: .9rem; font-variant-numeric: tabular-nums; }
.pair .similarity { font: 600 1.1rem/1.3 var(--serif); color: var(--ink); }
details { margin: 0 0 26px; }
summary { cursor: pointer; color: var(--accent); padding: 4px 0; width: fit-content; }
details[open] summary { margin-bottom: 12px; }
footer { color: var(--soft); font-size: .88rem; padding-top: 12px; padding-bottom: 60px; }
@media (max-width: 760px) {
  body { font-size: 15.5px; }
  .groups { --thumb: calc((100vw - 2 * clamp(18px, 4vw, 48px) - 36px) / 4 - .1px); }
  .groups > div { width: 100%; }
  .figures { grid-template-columns: 1fr 1fr; } .figures div { padding: 12px 16px 10px; }
  .figures dd { font-size: 1.55rem; } .plots figcaption { min-height: 0; }
  .words { min-width: 11em; }
  tbody th, thead tr:first-child th:first-child { position: sticky; left: 0; background: var(--card); }
  tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 8.5em; max-width: 11em; line-height: 1.35; }
  tbody th .chip { display: block; width: fit-content; margin: 3px 0 0; } td.bar { min-width: 84px; }
}
@media (max-width: 440px) { .sheet code { font-size: .88em; } }
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb; --wash: #f4f4f4; --accent: #7a3512;
    --alarm: #a4161a; --g0: #f1d5ad; --g1: #e3a971; --g2: #cc7d42; --g3: #a25325; --g4: #6b2f14; --gx: #cbc4b8; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10.5pt; } nav { display: none; } main, header, footer { padding-left: 0; padding-right: 0; }
  .scroll { overflow: visible; } th, td { white-space: normal; padding: 5px 8px; }
  figure, .pair, tr, .heading { break-inside: avoid; } h2, h3, .heading, caption { break-after: avoid; }
}
"""
