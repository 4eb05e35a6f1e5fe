"""How a page looks: one sheet for the light and the dark scheme, for a telephone, a desk and paper.

Every colour of text has a contrast of at least 4.5 with what lies behind it, and every colour of a curve one of 3; the
palette keeps its order of lightness for the colour-blind.  Paper gets the light scheme.
"""

LIGHT = """
  --page: #ffffff; --sheet: #f5f6f8; --text: #1b1f24; --soft: #57606a; --edge: #d5d9df; --grid: #e4e7eb;
  --link: #0b5cad; --good: #1a6b38; --bad: #8a4b00;
  --c0: #0b5cad; --c1: #b34700; --c2: #00755a; --c3: #8a3a7c; --c4: #5b5f00; --c5: #444c56;
"""
DARK = """
  --page: #14171c; --sheet: #1c2027; --text: #e8eaed; --soft: #a3abb5; --edge: #363c45; --grid: #2a2f37;
  --link: #7cb7ff; --good: #6fd08c; --bad: #f0b266;
  --c0: #7cb7ff; --c1: #ff9f66; --c2: #58d1ab; --c3: #e3a0d8; --c4: #d3d36a; --c5: #b5bdc8;
"""
SERIES = "\n".join(
    f".c{i} {{ stroke: var(--c{i}); }} .f{i} {{ fill: var(--c{i}); }} .a{i} {{ fill: var(--c{i}); }}" for i in range(6)
)
STYLE = f""":root {{ color-scheme: light dark; {LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }}
main, header, footer {{ max-width: 74rem; margin: 0 auto; padding: 0 1rem; }}
header {{ padding-top: 2.5rem; }}
footer {{ padding: 1.5rem 1rem 3rem; color: var(--soft); font-size: 0.85rem; }}
h1 {{ font-size: 1.75rem; line-height: 1.2; margin: 0 0 0.35rem; letter-spacing: -0.01em; }}
h2 {{ font-size: 1.3rem; line-height: 1.25; margin: 3rem 0 0.75rem; }}
h3, h4 {{ font-size: 1.05rem; line-height: 1.3; margin: 0 0 0.5rem; }}
p {{ margin: 0.4rem 0; max-width: 46rem; }}
a {{ color: var(--link); text-underline-offset: 0.15em; }}
:focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
nav a {{ display: inline-block; padding: 0.35rem 0; margin-right: 1.25rem; }}
.about, .dim, caption, figcaption {{ color: var(--soft); }}
.about {{ font-size: 0.95rem; max-width: 60rem; }}
.lead {{ font-size: 1.2rem; line-height: 1.45; margin: 1.25rem 0 0.75rem; max-width: 52rem; }}
.said {{ padding-left: 1.2rem; max-width: 48rem; }}
.said li {{ margin: 0.3rem 0; }}
.heads {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 0.75rem;
  margin: 1.25rem 0; }}
.heads div {{ background: var(--sheet); border-radius: 0.5rem; padding: 0.75rem 1rem; }}
.heads dt {{ color: var(--soft); font-size: 0.9rem; }}
.heads dd {{ margin: 0.1rem 0 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }}
.heads dd + dd {{ font-size: 0.85rem; color: var(--soft); }}
.warning {{ color: var(--bad); }}
.better {{ color: var(--good); }}
.worse {{ color: var(--bad); }}
.unsure {{ color: var(--soft); }}
.gapscope section {{ padding-bottom: 1.75rem; break-inside: avoid; overflow-x: auto; }}
.brief .gapscope {{ columns: 2 30rem; column-gap: 3rem; }}
.brief section.wide {{ column-span: all; padding-bottom: 1.5rem; }}
.gapscope p, .gapscope li {{ font-size: 0.9rem; }}
ul {{ padding-left: 1.2rem; max-width: 48rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.925rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; padding-bottom: 0.4rem; font-size: 0.9rem; }}
th, td {{ padding: 0.3rem 0.9rem 0.3rem 0; text-align: left; vertical-align: baseline; font-weight: 400;
  overflow-wrap: normal; }}
th:first-child {{ max-width: 22rem; overflow-wrap: break-word; }}
td {{ white-space: nowrap; }}
td.words {{ white-space: normal; max-width: 34rem; }}
thead th {{ color: var(--soft); font-size: 0.85rem; vertical-align: bottom; border-bottom: 1px solid var(--edge); }}
tbody tr + tr > * {{ border-top: 1px solid var(--grid); }}
th[scope="rowgroup"] {{ padding-top: 0.8rem; font-weight: 600; }}
td.better, td.worse {{ font-weight: 600; }}
.figures {{ columns: 2 30rem; column-gap: 3rem; }}
figure {{ margin: 0; padding-bottom: 2.75rem; break-inside: avoid; }}
figure.wide {{ column-span: all; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 2.5rem; }}
.panels > div {{ max-width: 33rem; min-width: 0; }}
.panels h4 {{ font-size: 0.95rem; font-weight: 600; margin: 0.25rem 0; }}
figcaption {{ font-size: 0.875rem; line-height: 1.45; margin-top: 0.5rem; max-width: 46rem; }}
details {{ margin-top: 0.5rem; font-size: 0.9rem; }}
summary {{ cursor: pointer; padding: 0.35rem 0; color: var(--link); width: fit-content; }}
details .scroll {{ max-height: 24rem; overflow-y: auto; }}
dl.definitions dt {{ font-weight: 600; margin-top: 0.9rem; }}
dl.definitions dd {{ margin: 0.1rem 0 0; max-width: 46rem; }}
dl.definitions :target {{ background: var(--sheet); }}
code {{ font: 0.85em ui-monospace, "DejaVu Sans Mono", monospace; color: var(--soft); font-weight: 400; }}
svg {{ display: block; width: 100%; height: auto; font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums; }}
svg text {{ fill: var(--text); }}
svg .tick, svg .axis {{ fill: var(--soft); }}
.grid {{ stroke: var(--grid); }}
.curve {{ fill: none; stroke-width: 2; stroke-linejoin: round; }}
.error {{ fill: none; stroke-width: 1.25; opacity: 0.75; }}
.area {{ opacity: 0.18; }}
.box {{ opacity: 0.3; }}
.even {{ fill: none; stroke: var(--text); }}
.hit {{ fill: transparent; }}
.hit:hover {{ fill: var(--text); opacity: 0.08; }}
.contour {{ fill: none; stroke: #ffffff; stroke-opacity: 0.75; }}
.cells {{ shape-rendering: crispEdges; }}
.cross {{ fill: none; stroke: #ffffff; stroke-width: 3; paint-order: stroke; }}
.odd {{ fill: var(--grid); }}
svg .halo {{ paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }}
{SERIES}
@media (max-width: 40rem) {{
  header {{ padding-top: 1.5rem; }}
  h1 {{ font-size: 1.45rem; }}
  .lead {{ font-size: 1.08rem; }}
  .gapscope table, .gapscope tbody {{ display: block; }}
  .gapscope thead {{ position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }}
  .gapscope caption {{ display: block; }}
  .gapscope tbody tr {{ display: flex; flex-wrap: wrap; gap: 0.15rem 1rem; padding: 0.5rem 0;
    border-top: 1px solid var(--grid); }}
  .gapscope tr > * {{ border: 0 !important; padding: 0.05rem 0; max-width: none !important; }}
  .gapscope tr > th {{ flex: 0 0 100%; }}
  .gapscope td {{ text-align: left !important; align-self: end; min-width: 6rem; }}
  .gapscope tr > th[scope="row"] {{ font-weight: 600; padding-left: 0 !important; }}
  .gapscope td[data-label]::before {{ content: attr(data-label); display: block; color: var(--soft);
    font-size: 0.8rem; font-weight: 400; }}
  .gapscope th[data-label]::before {{ content: attr(data-label) " "; color: var(--soft); font-weight: 400; }}
  .gapscope td:empty {{ display: none; }}
}}
@media print {{
  :root {{ font-size: 9.5pt; }}
  nav, details:not([open]) {{ display: none; }}
  .figures {{ columns: 2; column-gap: 2rem; }}
  figure, tr, .heads div {{ break-inside: avoid; }}
  h2, h3, h4 {{ break-after: avoid; }}
  .scroll {{ overflow: visible !important; max-height: none !important; }}
}}
"""
