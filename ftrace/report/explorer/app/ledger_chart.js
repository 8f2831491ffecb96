// @ts-check
/**
 * What made the queries' losses fall, by stretch of training: Ledger({ledger}). Stacked bars, whose legend is a table of
 * sums, and all numbers in a table to unfold. What the accounts leave unexplained is in both tables, so that they add up.
 */

const LEDGER = { width: 560, height: 220, left: 64, bottom: 30, top: 8, line: 20 };

/** @param {{ledger: LedgerPage}} props */
function LedgerPart({ ledger }) {
  const stretches = ledger.actual.length;
  return h(
    "section",
    { class: "ledger", "aria-label": "Ledger" },
    h("h2", null, "What the scores explain"),
    h("p", { class: "lead" }, h("bdi", null, plain(ledger.sentence))),
    h(Problems, { texts: ledger.doubts }),
    stretches > 0 && h("div", { class: "ledger-parts" }, h(LedgerBars, { ledger }), h(LedgerSums, { ledger })),
    stretches > 0 && h(LedgerTable, { ledger }),
  );
}

/** @param {{ledger: LedgerPage}} props */
function LedgerBars({ ledger }) {
  const { width, height, left, bottom, top } = LEDGER;
  const { steps, actual, accounts } = ledger;
  const sides = actual.map((value, at) => {
    const parts = accounts.map((account) => account.values[at] ?? 0);
    const sum = (/** @type {number[]} */ values) => values.reduce((total, part) => total + part, 0);
    return { low: Math.min(0, value ?? 0, sum(parts.filter((part) => part < 0))), high: Math.max(0, value ?? 0, sum(parts.filter((part) => part > 0))) };
  });
  const low = Math.min(...sides.map((side) => side.low));
  const high = Math.max(...sides.map((side) => side.high)) || 1;
  const y = (/** @type {number} */ value) => top + ((high - value) / (high - low)) * (height - top - bottom);
  const [first, last] = [steps[0] ?? 0, steps[steps.length - 1] ?? 1];
  const x = (/** @type {number} */ step) => left + ((step - first) / (last - first || 1)) * (width - left);
  const sum = actual.reduce((/** @type {number} */ total, value) => total + (value ?? 0), 0);
  return h(
    "svg",
    { class: "ledger-bars", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `The mean loss of a query falls by ${nats(sum)} nats between step ${count(first)} and step ${count(last)}; the table has the numbers.` },
    h("defs", null, h("pattern", { id: "hatched", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, h("rect", { class: "hatch", width: 2, height: 5 }))),
    y(0) - y(high) > LEDGER.line && h("text", { class: "soft", x: left - 6, y: y(high) + 10, "text-anchor": "end" }, nats(high)),
    h("text", { class: "soft", x: left - 6, y: y(0) + 4, "text-anchor": "end" }, "0"),
    low < 0 && h("text", { class: "soft", x: left - 6, y: Math.max(y(low), y(0) + 4 + LEDGER.line), "text-anchor": "end" }, nats(low)),
    actual.map((value, at) => {
      const [begin, end] = [x(steps[at] ?? first), x(steps[at + 1] ?? last)];
      let [up, down] = [0, 0];
      const bars = accounts.map((account, number) => {
        const part = account.values[at] ?? 0;
        const from = part < 0 ? down : up;
        if (part < 0) down += part;
        else up += part;
        return h("rect", { key: number, class: `account-${number % 6}`, x: begin + 0.5, width: Math.max(0.5, end - begin - 1), y: Math.min(y(from), y(from + part)), height: Math.abs(y(from) - y(from + part)) });
      });
      return h("g", { key: at }, bars, value !== null && h("line", { class: "actual", x1: begin, x2: end, y1: y(value), y2: y(value) }));
    }),
    h("line", { class: "base", x1: left, x2: width, y1: y(0), y2: y(0) }),
    h("text", { class: "soft", x: left, y: height - 6 }, `step ${count(first)}`),
    h("text", { class: "soft", x: width, y: height - 6, "text-anchor": "end" }, count(last)),
  );
}

/**
 * Return the accounts, and what they leave of the losses' fall.
 * @param {LedgerPage} ledger
 */
function withRest({ actual, accounts }) {
  const rest = actual.map((value, at) => (value === null ? null : value - sumOf(accounts.map(({ values }) => values[at] ?? null))));
  return [...accounts, { name: "curvature (the rest)", values: rest }];
}

/** @param {(number | null)[]} values */
function sumOf(values) {
  return values.reduce((/** @type {number} */ total, value) => total + (value ?? 0), 0);
}

/** @param {{ledger: LedgerPage}} props */
function LedgerSums({ ledger }) {
  const actual = sumOf(ledger.actual);
  const rows = withRest(ledger).map(({ name, values }, number, { length }) => ({ name, sum: sumOf(values), sign: number < length - 1 ? `account-${number % 6}` : "none" }));
  const largest = Math.max(Math.abs(actual), ...rows.map(({ sum }) => Math.abs(sum)));
  return h(
    "table",
    { class: "plain" },
    h("caption", { class: "unseen" }, "Mean fall of a query’s loss over all of training, in nats"),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Explained by"), h("th", { scope: "col", class: "number" }, "Nats"), h("th", { scope: "col", class: "number" }, "Share"))),
    h(
      "tbody",
      null,
      rows.map(({ name, sum, sign }) => h("tr", { key: name }, h("th", { scope: "row" }, h(Swatch, { sign }), h("bdi", null, plain(name))), h("td", { class: "number" }, scoreText(sum, largest)), h("td", { class: "number" }, percent(actual ? sum / actual : null)))),
      h("tr", { class: "total" }, h("th", { scope: "row" }, h("span", { class: "swatch actual", "aria-hidden": "true" }), "the losses fell by"), h("td", { class: "number" }, scoreText(actual, largest)), h("td", { class: "number" }, "100%")),
    ),
  );
}

/** @param {{sign: string}} props */
function Swatch({ sign }) {
  return h("svg", { class: "swatch ledger-bars", viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" }, h("rect", { class: sign, width: 14, height: 14 }));
}

/** @param {{ledger: LedgerPage}} props */
function LedgerTable({ ledger }) {
  const accounts = withRest(ledger);
  const largest = largestOf([...ledger.actual, ...accounts.flatMap(({ values }) => values)]);
  return h(
    "details",
    null,
    h("summary", null, "All numbers"),
    h(
      "div",
      { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Ledger by stretch of training, scrolls" },
      h(
        "table",
        { class: "plain" },
        h("thead", null, h("tr", null, h("th", { scope: "col" }, "Steps"), h("th", { scope: "col", class: "number" }, "Loss fell by"), accounts.map(({ name }) => h("th", { scope: "col", class: "number", key: name }, h("bdi", null, plain(name)))))),
        h(
          "tbody",
          null,
          ledger.actual.map((value, at) =>
            h("tr", { key: at }, h("th", { scope: "row" }, `${count(ledger.steps[at] ?? 0)} to ${count(ledger.steps[at + 1] ?? 0)}`), h("td", { class: "number" }, scoreText(value, largest)), accounts.map(({ name, values }) => h("td", { class: "number", key: name }, scoreText(values[at] ?? null, largest)))),
          ),
        ),
      ),
    ),
  );
}
