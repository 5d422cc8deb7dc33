"""The style and the script that report.html and compare.html carry inside them; no other file, no network."""

CSS = """
:root { --page: #f7f8fa; --card: #ffffff; --ink: #1c2330; --soft: #5d6778; --line: #e1e5eb; --model: #0b7a75;
  --baseline: #a3adba; --published: #7a5fb5; --gold: #1f7a3d; --gold-bg: #dcf3e2; --wrong: #b3372f; --wrong-bg: #fbe3e0;
  --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029; --ink: #e4e8ee; --soft: #98a3b3;
  --line: #2c3440; --model: #3fbdb5; --baseline: #66717f; --published: #a78be0; --gold: #74d493; --gold-bg: #173a24;
  --wrong: #f08d84; --wrong-bg: #47211e; --code: #232b36; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 80px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 2px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 24px;
  margin: 0 0 18px; }
.soft { color: var(--soft); }
.small { font-size: 13px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 10px 0 0; }
.chip { background: var(--code); border-radius: 999px; padding: 2px 11px; font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 10px 0; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
th:first-child, td:first-child, .text { text-align: left; }
td.note { text-align: left; white-space: normal; color: var(--soft); font-size: 13px; min-width: 150px; }
td { font-variant-numeric: tabular-nums; }
td .ci { display: block; color: var(--soft); font-size: 12px; }
tr.model td { font-weight: 600; } tr.model td .ci, tr.model td.note { font-weight: 400; }
.lead { color: var(--ink); }
.provenance td { white-space: normal; text-align: left; overflow-wrap: anywhere; }
.provenance td:first-child { white-space: nowrap; color: var(--soft); vertical-align: top; }
svg { display: block; width: 100%; max-width: 860px; height: auto; margin: 8px 0; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); } svg text.tick { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); } svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
svg .model { fill: var(--model); } svg .baseline { fill: var(--baseline); } svg .published { fill: var(--published); }
.parse { display: flex; height: 8px; border-radius: 4px; overflow: hidden; background: var(--line); margin: 6px 0; }
.parse .exact { background: var(--model); } .parse .repaired { background: var(--published); }
.parse .unparsable { background: var(--wrong); }
.filters { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 12px 0; }
select, input, button { font: inherit; font-size: 14px; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 5px 10px; }
input { flex: 1; min-width: 180px; } button { cursor: pointer; }
button[aria-pressed=true] { border-color: var(--model); color: var(--model); font-weight: 600; }
:focus-visible { outline: 2px solid var(--model); outline-offset: 1px; }
.error { border-top: 1px solid var(--line); padding: 12px 0; }
.sentence { overflow-wrap: anywhere; margin: 4px 0; white-space: pre-wrap; }
.g, .p { border-radius: 4px; padding: 1px 3px; }
.g { background: var(--gold-bg); color: var(--gold); }
.p { background: var(--wrong-bg); color: var(--wrong); }
.g.p { background: linear-gradient(var(--gold-bg) 50%, var(--wrong-bg) 50%); color: var(--ink); }
.mistake { font-size: 14px; margin: 3px 0; overflow-wrap: anywhere; }
.kind { display: inline-block; min-width: 92px; color: var(--soft); font-size: 13px; }
details { font-size: 13px; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--code); border-radius: 8px; padding: 10px 12px; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 320px; }
"""

# The error list. Texts reach the page through textContent only, so nothing a model wrote is ever read as markup.
SCRIPT = """
(() => {
  const rows = JSON.parse(document.getElementById('errors-data').textContent);
  const list = document.getElementById('errors-list'), count = document.getElementById('errors-count');
  const more = document.getElementById('errors-more'), text = document.getElementById('filter-text');
  const source = document.getElementById('filter-source'), seen = document.getElementById('filter-seen');
  const kinds = [...document.querySelectorAll('[data-kind]')];
  const STEP = 50;
  let shown = STEP, active = new Set();
  const make = (tag, className, content) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (content !== undefined) node.textContent = content;
    return node;
  };
  const fits = (row, error) => (!active.size || active.has(error.kind)) &&
    (!seen.value || String(error.seen) === seen.value);
  const matches = row => (!source.value || row.source === source.value) && row.errors.some(e => fits(row, e)) &&
    (!text.value || row.haystack.includes(text.value.toLowerCase()));
  const sentence = row => {
    const box = make('div', 'sentence');
    for (const [piece, marks] of row.pieces) box.append(marks ? make('span', marks, piece) : piece);
    return box;
  };
  const card = row => {
    const box = make('div', 'error');
    box.append(make('div', 'soft small', `${row.source}, row ${row.row}${row.id ? ', ' + row.id : ''}` +
      (row.finish ? ` (${row.finish})` : '')), sentence(row));
    for (const error of row.errors.filter(e => fits(row, e))) {
      const line = make('div', 'mistake');
      line.append(make('span', 'kind', error.kind));
      if (error.gold) line.append(make('span', 'g', error.gold));
      if (error.gold && error.prediction) line.append(' \\u2192 ');
      if (error.prediction) line.append(make('span', 'p', error.prediction));
      if (error.seen !== null) line.append(make('span', 'soft small', error.seen ? '  seen in training' : '  unseen'));
      box.append(line);
    }
    const raw = make('details');
    raw.append(make('summary', '', 'generated text'), make('pre', '', row.generated || '(empty)'));
    box.append(raw);
    return box;
  };
  const draw = () => {
    const found = rows.filter(matches);
    list.replaceChildren(...found.slice(0, shown).map(card));
    count.textContent = `${found.length.toLocaleString('en')} of ${rows.length.toLocaleString('en')} rows`;
    more.hidden = found.length <= shown;
  };
  for (const row of rows) row.haystack = [row.pieces.map(p => p[0]).join(''), row.id, row.generated,
    ...row.errors.flatMap(e => [e.gold, e.prediction])].join('\\n').toLowerCase();
  const refresh = () => { shown = STEP; draw(); };
  for (const control of [source, seen]) control.addEventListener('change', refresh);
  text.addEventListener('input', refresh);
  for (const button of kinds) button.addEventListener('click', () => {
    const kind = button.dataset.kind, on = !active.has(kind);
    if (on) active.add(kind); else active.delete(kind);
    button.setAttribute('aria-pressed', on);
    refresh();
  });
  more.addEventListener('click', () => { shown += STEP; draw(); });
  draw();
})();
"""
