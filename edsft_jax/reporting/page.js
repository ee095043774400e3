// Fills the charts and the table of picks from the data of the page.
(() => {
  'use strict';

  const element = (id) => document.getElementById(id);
  const read = (id) => element(id) && JSON.parse(element(id).textContent);
  const colour = (variable) =>
    getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
  // Of palette.py.
  const [INK, GRID, MUTED, SPINE] =
    ['--c-1f2430', '--c-eceef2', '--c-6b7280', '--c-9aa1ac'];
  const curves = read('curves-data');
  const pool = read('pool-data');
  // Functions to call when the page becomes dark or light.
  const redraw = [];

  document.documentElement.classList.add('interactive');

  function option(select, value, text) {
    select.add(new Option(text, value));
  }

  async function embed(id) {
    const item = read(`${id}-model`);
    item.target_id = id;
    await Bokeh.embed.embed_item(item);
    return Bokeh.documents.at(-1);
  }

  function restyle(chart) {
    const plot = chart.get_model_by_name(chart.roots()[0].name);
    const ink = colour(INK);
    for (const axis of [...plot.below, ...plot.left]) {
      axis.axis_label_text_color = ink;
      axis.major_label_text_color = ink;
      axis.axis_line_color = colour(MUTED);
      axis.major_tick_line_color = colour(MUTED);
      axis.minor_tick_line_color = null;
    }
    for (const one of plot.center) {
      if (one.grid_line_color !== undefined) one.grid_line_color = colour(GRID);
      if (one.line_dash !== undefined) one.line_color = ink;
    }
    return plot;
  }

  function paint(chart, name, shade, filled = true) {
    const { glyph } = chart.get_model_by_name(name);
    if (glyph.line_color !== undefined) glyph.line_color = { value: shade };
    if (filled && glyph.fill_color !== undefined) {
      glyph.fill_color = glyph.fill_color.field === undefined
        ? { value: shade } : shade;
    }
  }

  // Label efficiency.

  const number = (x) => x.toFixed(3).replace('-', '−');

  function described(point) {
    const interval = point.low === null
      ? '' : ` (${number(point.low)} to ${number(point.high)})`;
    return `${point.budget.toLocaleString('en')} answers: ` +
      number(point.mean) + interval;
  }

  async function showCurves() {
    const chart = await embed('efficiency-chart');
    const [metric, axis] = [element('metric'), element('axis')];
    const intervals = element('intervals');
    const shown = element('shown');
    curves.metrics.forEach((one) => option(metric, one.name, one.label));
    curves.axes.forEach((one) => option(axis, one.name, one.label));

    function draw() {
      const about = curves.metrics.find((one) => one.name === metric.value);
      const isAnswers = axis.value === 'answers';
      for (const { name, variable } of curves.strategies) {
        const points = about.points[name];
        const cost = points.map((one) => one.costs[axis.value]);
        const ends = (end) => points.map((one) => one[end] ?? one.mean);
        chart.get_model_by_name(`means ${name}`).data = {
          x: cost,
          y: points.map((one) => one.mean),
          low: ends('low'),
          high: ends('high'),
          text: points.map(described),
        };
        chart.get_model_by_name(`seeds ${name}`).data = {
          x: points.flatMap((one, i) => one.seeds.map(() => cost[i])),
          y: points.flatMap((one) => one.seeds),
        };
        const visible = shown.querySelector(`[value="${name}"]`).checked;
        for (const part of ['band', 'line', 'dots', 'rings']) {
          const isDetail = part === 'band' || part === 'rings';
          chart.get_model_by_name(`${part} ${name}`).visible =
            visible && (!isDetail || intervals.checked);
          paint(chart, `${part} ${name}`, colour(variable), part !== 'rings');
        }
      }
      for (const one of ['full pool', 'no finetuning']) {
        const line = chart.get_model_by_name(one);
        const reference = about.references.find(({ label }) => label === one);
        line.visible = reference !== undefined;
        line.location = reference?.value ?? 0;
      }
      const plot = restyle(chart);
      plot.left[0].axis_label = about.label;
      const [budgets, others] = ['budgets', 'costs'].map(
        (name) => chart.get_model_by_name(name));
      budgets.visible = isAnswers;
      others.visible = !isAnswers;
      const { label } = curves.axes.find((one) => one.name === axis.value);
      budgets.axis_label = others.axis_label = label;
      chart.get_model_by_name('ticks').ticks = curves.budgets;
    }

    for (const control of [metric, axis, intervals, shown]) {
      control.addEventListener('change', draw);
    }
    redraw.push(draw);
    draw();
  }

  // What was picked.

  const listName = ({ strategy, seeds }) =>
    `${strategy}, seed${seeds.length > 1 ? 's' : ''} ${seeds.join(', ')}`;

  const taskOf = (prompt) =>
    pool.task.length ? pool.tasks[pool.task[prompt]] : '';

  async function showMap() {
    const chart = await embed('map-chart');
    const [list, budget, method] =
      [element('map-list'), element('map-budget'), element('map-method')];
    pool.lists.forEach((one, i) => option(list, i, listName(one)));
    pool.budgets.forEach((one) => option(
      budget, one, `${one.toLocaleString('en')} answers`));
    budget.selectedIndex = pool.budgets.length - 1;
    Object.keys(pool.points).forEach((one) => option(method, one, one));
    method.closest('label').hidden = method.length < 2;

    function columns(prompts, about) {
      const points = pool.points[method.value];
      return {
        x: prompts.map((i) => points.x[i]),
        y: prompts.map((i) => points.y[i]),
        text: prompts.map((i) => pool.texts[i]),
        about: prompts.map(about),
      };
    }

    function draw() {
      const one = pool.lists[list.value];
      const chosen = one.picks.slice(0, budget.value);
      const ranks = new Map(chosen.map((prompt, i) => [prompt, i + 1]));
      const others = pool.ids.map((_, i) => i).filter((i) => !ranks.has(i));
      const about = (i) => [
        ranks.has(i) ? `pick ${ranks.get(i)}` : '',
        taskOf(i),
        `${pool.words[i]} words`,
      ].filter(Boolean).join(', ');
      chart.get_model_by_name('others').data = columns(others, about);
      chart.get_model_by_name('picks').data = columns(chosen, about);
      paint(chart, 'dots others', colour(SPINE));
      paint(chart, 'dots picks', colour(one.variable));
      restyle(chart);
    }

    for (const control of [list, budget, method]) {
      control.addEventListener('change', draw);
    }
    redraw.push(draw);
    draw();
  }

  function showTable() {
    const body = element('picks').tBodies[0];
    const [list, search, count, more] = ['picks-list', 'picks-search',
      'picks-count', 'picks-more'].map(element);
    pool.lists.forEach((one, i) => option(list, i, listName(one)));
    const headers = [...element('picks').tHead.querySelectorAll('button')];
    const step = 15;
    let [limit, by, ascending] = [step, 'rank', true];

    function rows() {
      const one = pool.lists[list.value];
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = one.picks.map((prompt, i) => ({
        rank: i + 1,
        task: taskOf(prompt),
        words: pool.words[prompt],
        score: one.scores[i],
        prompt: pool.texts[prompt],
        id: pool.ids[prompt],
      })).filter((row) => {
        const text = `${row.id} ${row.task} ${row.prompt}`.toLowerCase();
        return words.every((word) => text.includes(word));
      });
      const sign = ascending ? 1 : -1;
      return found.sort((a, b) => {
        const [x, y] = [a[by] ?? Infinity, b[by] ?? Infinity];
        return sign * (x < y ? -1 : x > y ? 1 : a.rank - b.rank);
      });
    }

    function draw() {
      const found = rows();
      body.replaceChildren(...found.slice(0, limit).map((row) => {
        const line = document.createElement('tr');
        for (const { dataset, textContent, parentElement } of headers) {
          const cell = line.insertCell();
          const isNumber = typeof row[dataset.by] === 'number';
          cell.className = parentElement.className;
          cell.dataset.label = textContent;
          cell.append(document.createElement('div'));
          cell.firstChild.textContent = isNumber
            ? row[dataset.by].toLocaleString('en') : row[dataset.by] ?? '–';
        }
        return line;
      }));
      const total = pool.lists[list.value].picks.length;
      count.textContent = `${found.length.toLocaleString('en')} of ` +
        `${total.toLocaleString('en')} picks`;
      more.hidden = found.length <= limit;
      for (const header of headers) {
        const order = ascending ? 'ascending' : 'descending';
        header.parentElement.ariaSort =
          header.dataset.by === by ? order : 'none';
      }
    }

    function start() {
      limit = step;
      draw();
    }

    list.addEventListener('change', start);
    search.addEventListener('input', start);
    more.addEventListener('click', () => {
      limit += 10 * step;
      draw();
    });
    for (const header of headers) {
      header.addEventListener('click', () => {
        ascending = header.dataset.by === by ? !ascending : true;
        by = header.dataset.by;
        start();
      });
    }
    start();
  }

  // Details are open while the page is printed.

  let closed = [];
  addEventListener('beforeprint', () => {
    closed = [...document.querySelectorAll('details:not([open])')];
    for (const one of closed) one.open = true;
  });
  addEventListener('afterprint', () => {
    for (const one of closed) one.open = false;
  });

  async function show() {
    Bokeh.logger.set_level('error');
    if (pool) showTable();
    if (curves) await showCurves();
    if (pool && element('map-chart')) await showMap();
    matchMedia('(prefers-color-scheme: dark)').addEventListener(
      'change', () => redraw.forEach((draw) => draw()));
    document.documentElement.dataset.ready = 'true';
  }

  show();
})();
