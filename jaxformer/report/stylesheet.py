"""How the page of a study looks, on a screen and on paper."""

STYLES = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1240px; margin: 0 auto; padding: 1.2rem 1.2rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .4rem 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid #d9dbde; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .3rem 0; }
nav { font-size: .9rem; }
nav a { margin-right: .9rem; color: #005a8f; white-space: nowrap; }
.about { color: #55585d; font-size: .85rem; max-width: 110ch; margin-bottom: .6rem; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 1rem 0; font-size: .87rem; }
dl.facts dt { color: #55585d; }
dl.facts dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th { text-align: left; font-weight: 600; color: #55585d; vertical-align: bottom; }
th, td { padding: .3rem .45rem; }
thead th { border-bottom: 1.5px solid #1a1a1a; }
td { vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
th.text { min-width: 11rem; }
table.decisions { width: 100%; }
table.decisions tbody { border-bottom: 1px solid #d9dbde; }
tr.why td { padding-top: 0; padding-bottom: .55rem; color: #3a3c40; }
tr.why td.rule { border-left: 4px solid; }
td.name { min-width: 11rem; max-width: 16rem; overflow-wrap: anywhere; border-left: 4px solid; }
td.name code { font-size: .9em; }
code { font: .93em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.quiet { color: #6b6e73; }
.word { display: inline-block; padding: .05rem .45rem; border-radius: .25rem; color: #fff; font-weight: 650;
  font-size: .74rem; letter-spacing: .02em; white-space: nowrap; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.word.open { background: #fff; color: #55585d; border: 1px dashed #8a8d91; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: #55585d; font-size: .85rem; max-width: 110ch; margin: .2rem 0 .5rem; }
article { border-left: 4px solid; padding: .1rem 0 .1rem .9rem; margin: 1.5rem 0; }
article p.question { font-size: 1.02rem; }
article ul { margin: .3rem 0; padding-left: 1.2rem; }
@media (max-width: 600px) { body { padding: .8rem .7rem 3rem; } dl.facts { grid-template-columns: 1fr; }
  dl.facts dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; font-size: 11px; } .scroll { overflow: visible; } nav { display: none; }
  figure svg { min-width: 0 !important; } article, figure, tbody { break-inside: avoid; } }
"""
