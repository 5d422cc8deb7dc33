"""The style and the script that report.html and compare.html carry inside them; no other file, no network."""

CSS = """
:root { --page: #f7f8fa; --card: #ffffff; --ink: #1c2330; --soft: #5d6778; --line: #e1e5eb; --model: #0b7a75;
  --baseline: #a3adba; --published: #7a5fb5; --gold: #1f7a3d; --gold-bg: #dcf3e2; --wrong: #b3372f; --wrong-bg: #fbe3e0;
  --code: #eef1f5; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029; --ink: #e4e8ee;
  --soft: #98a3b3; --line: #2c3440; --model: #3fbdb5; --baseline: #66717f; --published: #a78be0; --gold: #74d493;
  --gold-bg: #173a24;  --wrong: #f08d84; --wrong-bg: #47211e; --code: #232b36; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 92ch; }
a { color: inherit; text-decoration-color: var(--baseline); text-underline-offset: 2px; }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 16px 20px;
  margin: 0 0 14px; }
.soft, td .soft { color: var(--soft); }
.small { font-size: 13px; font-weight: 400; }
.warning { border-left: 3px solid var(--wrong); padding-left: 10px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0; }
.chip { background: var(--code); border-radius: 4px; padding: 1px 8px; font-size: 13px; overflow-wrap: anywhere; }
code { background: var(--code); border-radius: 3px; padding: 0 3px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 8px 0; }
dt { color: var(--soft); } dd { margin: 0; max-width: 92ch; }
.scroll { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: 14px; min-width: 55%; }
caption { text-align: left; color: var(--soft); font-size: 13px; padding: 6px 0 2px; }
.plain caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; font-size: 13px; vertical-align: bottom; white-space: normal;
  border-bottom: 1px solid var(--soft); }
th.text, td.text, th[scope=row] { text-align: left; }
th[scope=row] { font-weight: 400; position: sticky; left: 0; background: var(--card); white-space: normal;
  overflow-wrap: anywhere; min-width: 140px; max-width: 230px; }
td { font-variant-numeric: tabular-nums; }
td.wrap { white-space: normal; min-width: 180px; }
.said td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.said th[scope=row] { color: var(--soft); }
.ci { display: block; color: var(--soft); font-size: 12px; font-weight: 400; }
td.model { font-weight: 600; } tr.leading th[scope=row] { font-weight: 600; }
.side { display: flex; flex-wrap: wrap; gap: 0 36px; align-items: flex-start; } .side > * { max-width: 100%; }
.side table { min-width: 0; }
td.published .ci { white-space: normal; min-width: 104px; } td.published div + div { margin-top: 4px; }
td.heat { background: color-mix(in srgb, var(--model) var(--share), transparent); } td.own { font-weight: 600; }
.parse { display: flex; height: 6px; overflow: hidden; background: var(--line); margin: 5px 0 3px; min-width: 110px;
  max-width: 360px; }
.parse .exact { background: var(--model); } .parse .repaired { background: var(--published); }
.parse .unparsable { background: repeating-linear-gradient(45deg, var(--wrong) 0 3px, var(--wrong-bg) 3px 5px); }
td.read { font-size: 13px; }
.bars { margin: 12px 0 4px; max-width: 900px; font-size: 13px; }
.bar { display: grid; grid-template-columns: 210px 1fr 52px; gap: 0 10px; align-items: center; padding: 2px 0; }
.bar .who { text-align: right; overflow-wrap: anywhere; line-height: 1.25; }
.bar .value { text-align: right; font-variant-numeric: tabular-nums; }
.track { position: relative; height: 16px; border-right: 1px solid var(--line);
  background: repeating-linear-gradient(to right, var(--line) 0 1px, transparent 1px 25%); }
.fill { position: absolute; left: 0; top: 3px; bottom: 3px; background: var(--model); opacity: .75; }
.whisker, .mark.interval { position: absolute; top: 7px; height: 2px; background: var(--ink); }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -3px; width: 1px; height: 8px;
  background: var(--ink); }
.whisker::before { left: 0; } .whisker::after { right: 0; }
.mark { position: absolute; }
.mark.constant { top: 0; height: 16px; border-left: 2px dotted var(--ink); }
.mark.dictionary { top: 0; height: 16px; border-left: 2px solid var(--soft); }
.mark.published, .mark.apart { top: 3px; width: 9px; height: 9px; transform: translateX(-50%) rotate(45deg);
  background: var(--published); border: 1.5px solid var(--published); }
.mark.apart { background: var(--card); }
.axis .track { height: 16px; background: none; border: 0; color: var(--soft); font-size: 11px; }
.axis .track span { position: absolute; transform: translateX(-50%); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; color: var(--soft); font-size: 12px; margin: 2px 0 0 220px; }
.legend .mark { position: relative; display: inline-block; vertical-align: -3px; top: 0; margin-right: 4px; }
.legend .mark.published, .legend .mark.apart { vertical-align: -1px; transform: rotate(45deg); }
.legend .mark.interval { width: 16px; vertical-align: 3px; }
.filters { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 10px 0; }
select, input, button { font: inherit; font-size: 14px; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 4px; padding: 4px 9px; max-width: 100%; }
input { flex: 1; min-width: 160px; } button { cursor: pointer; }
button:disabled { color: var(--soft); cursor: default; }
button[aria-pressed=true] { border-color: var(--model); color: var(--model); font-weight: 600; }
:focus-visible { outline: 2px solid var(--model); outline-offset: 1px; }
.error { border-top: 1px solid var(--line); padding: 10px 0; }
.sentence { overflow-wrap: anywhere; margin: 4px 0; white-space: pre-wrap; max-height: 320px; overflow-y: auto; }
.g, .p { padding: 0 2px; white-space: pre-wrap; }
.g { background: var(--gold-bg); color: var(--gold); border-bottom: 2px solid var(--gold); }
.p { background: var(--wrong-bg); color: var(--wrong); border-bottom: 2px dashed var(--wrong); }
.g.p { background: linear-gradient(var(--gold-bg) 50%, var(--wrong-bg) 50%); color: var(--ink);
  border-bottom: 2px solid var(--gold); }
.mistake { font-size: 14px; margin: 3px 0; overflow-wrap: anywhere; }
.mistake .item { margin-right: 12px; }
.kind { display: inline-block; min-width: 92px; color: var(--soft); font-size: 13px; }
details { font-size: 13px; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--code); border-radius: 4px; padding: 8px 10px; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 320px; }
@media (max-width: 640px) {
  main { padding: 8px 6px 40px; } section, header { padding: 12px; }
  .bar { grid-template-columns: 1fr auto; } .bar .who { text-align: left; }
  .bar .track { grid-column: 1 / -1; order: 3; margin: 0 6px; } .axis .who, .axis .value { display: none; }
  .legend { margin-left: 0; } th, td { padding: 4px 7px; } th[scope=row] { max-width: 130px; min-width: 104px; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 4px; } .said td { min-width: 200px; }
}
/* A4 is about 720 pixels wide between its margins, the widest tables are 1120. */
@media print {
  :root { --page: #fff; --card: #fff; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; zoom: .62; } section, header { border: 0; padding: 6px 0; }
  .scroll { overflow: visible; } tr, .bar, .error { break-inside: avoid; } h2 { break-after: avoid; }
  .filters, details { display: none; }
}
"""

# The error list. Texts reach the page through textContent only, so nothing a model wrote is ever read as markup.
SCRIPT = """
(() => {
  const byId = id => document.getElementById(id);
  const rows = JSON.parse(byId('errors-data').textContent);
  const list = byId('errors-list'), count = byId('errors-count'), place = byId('errors-place');
  const previous = byId('errors-previous'), next = byId('errors-next');
  const source = byId('filter-source'), label = byId('filter-label'), seen = byId('filter-seen');
  const text = byId('filter-text');
  const kinds = [...document.querySelectorAll('[data-kind]')];
  const PAGE = 25, active = new Set();
  let at = 0, found = rows;
  const number = value => value.toLocaleString('en');
  const make = (tag, className, content) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (content !== undefined) node.textContent = content;
    return node;
  };
  const fits = error => (!active.size || active.has(error.kind)) &&
    (!seen.value || String(error.seen) === seen.value) && (!label.value || (error.labels || []).includes(label.value));
  // Made when a text is first looked for: most readers never do.
  const haystack = row => row.haystack ??= [(row.pieces || []).map(p => typeof p === 'string' ? p : p[0]).join(''),
    row.id, row.generated, ...row.errors.flatMap(e => [e.gold, e.prediction])]
    .filter(Boolean).join('\\n').toLowerCase();
  const matches = row => (!source.value || row.source === source.value) && row.errors.some(fits) &&
    (!text.value || haystack(row).includes(text.value.toLowerCase()));
  const sentence = row => {
    const box = make('div', 'sentence');
    for (const piece of row.pieces) box.append(typeof piece === 'string' ? piece : make('span', piece[1], piece[0]));
    return box;
  };
  const item = error => {
    const box = make('span', 'item');
    if (error.gold) box.append(make('span', 'g', error.gold));
    if (error.gold && error.prediction) box.append(' \\u2192 ');
    if (error.prediction) box.append(make('span', 'p', error.prediction));
    if (error.seen !== undefined) box.append(make('span', 'soft small', error.seen ? ' seen in training' : ' unseen'));
    return box;
  };
  const card = row => {
    const box = make('div', 'error');
    box.append(make('div', 'soft small', `${row.source}, row ${row.row}${row.id ? ', ' + row.id : ''}` +
      (row.finish ? ` (${row.finish})` : '') + (row.pieces ? '' : ', text not shown')));
    if (row.pieces) box.append(sentence(row));
    const byKind = new Map();
    for (const error of row.errors.filter(fits)) {
      if (!byKind.has(error.kind)) {
        const line = make('div', 'mistake');
        line.append(make('span', 'kind', error.kind));
        byKind.set(error.kind, line);
      }
      byKind.get(error.kind).append(item(error));
    }
    box.append(...byKind.values());
    if (row.pieces) {
      const raw = make('details');
      raw.append(make('summary', '', 'generated text'), make('pre', '', row.generated || '(empty)'));
      box.append(raw);
    }
    return box;
  };
  const draw = () => {
    list.replaceChildren(...found.slice(at, at + PAGE).map(card));
    const last = Math.min(at + PAGE, found.length);
    place.textContent = found.length ? `${number(at + 1)} to ${number(last)} of ${number(found.length)}` : 'none';
    previous.disabled = at === 0;
    next.disabled = last === found.length;
  };
  const refresh = () => {
    at = 0;
    found = rows.filter(matches);
    count.textContent = `${number(found.length)} of ${number(rows.length)} rows`;
    draw();
  };
  const choose = () => {
    const names = new Set();
    for (const row of rows) if (!source.value || row.source === source.value)
      for (const error of row.errors) for (const name of error.labels || []) names.add(name);
    const options = [...names].sort().map(name => {
      const option = make('option', '', name);
      option.value = name;
      return option;
    });
    label.replaceChildren(label.options[0], ...options);
    label.value = '';
    label.hidden = !options.length;
    refresh();
  };
  const move = step => { at += step; draw(); byId('errors').scrollIntoView(); };
  source.addEventListener('change', choose);
  for (const control of [label, seen]) control.addEventListener('change', refresh);
  text.addEventListener('input', refresh);
  for (const button of kinds) button.addEventListener('click', () => {
    const kind = button.dataset.kind, on = !active.has(kind);
    if (on) active.add(kind); else active.delete(kind);
    button.setAttribute('aria-pressed', on);
    refresh();
  });
  for (const link of document.querySelectorAll('[data-errors-of]')) link.addEventListener('click', () => {
    source.value = link.dataset.errorsOf;
    if (source.selectedIndex < 0) source.value = '';
    choose();
  });
  previous.addEventListener('click', () => move(-PAGE));
  next.addEventListener('click', () => move(PAGE));
  seen.hidden = !rows.some(row => row.errors.some(error => error.seen !== undefined));
  choose();
})();
"""
