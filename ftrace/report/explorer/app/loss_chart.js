// @ts-check
/**
 * A query's loss over training, as a small picture: LossChart({loss, answered}).
 *
 * Its ends and the step at which the query was first right are named in it, so that it needs no axes and no legend.
 */

const CHART = { width: 340, height: 132, left: 2, right: 2, top: 30, bottom: 24 };
/** Of the labels' letters, in pixels: about the width of one, and the height above and below the line they stand on. */
const LETTER = { width: 7.4, up: 11, down: 3 };
const GAP = 5;

/** @typedef {{x: number, y: number}} ChartPoint */
/** @typedef {{x: number, y: number, text: string}} ChartLabel  Where its text begins, and the line that it stands on. */

/** @param {{loss: Loss, answered: Answered | null}} props */
function LossChart({ loss, answered }) {
  const points = loss.steps.flatMap((step, place) => {
    const value = loss.values[place] ?? null;
    return value === null ? [] : [{ step, value }];
  });
  const [first, last] = [points[0], points[points.length - 1]];
  if (first === undefined || last === undefined || first === last) return null;
  const { width, height, left, right, top, bottom } = CHART;
  const most = Math.max(...points.map(({ value }) => value)) || 1;
  const x = (/** @type {number} */ step) => left + ((step - first.step) / (last.step - first.step)) * (width - left - right);
  const y = (/** @type {number} */ value) => height - bottom - (Math.max(0, value) / most) * (height - top - bottom);
  const curve = points.map(({ step, value }) => ({ x: x(step), y: y(value) }));
  const path = curve.map((point, place) => `${place === 0 ? "M" : "L"}${point.x.toFixed(1)} ${point.y.toFixed(1)}`).join("");
  const base = height - bottom;
  const ends = [above(curve, left, `${nats(first.value)} nats`), above(curve, width - right - widthOf(nats(last.value)), nats(last.value))];
  return h(
    "figure",
    { class: "loss-chart" },
    h(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Loss over training, ${lossText(first.value, last.value)} nats.${answered === null ? "" : ` ${capitalized(answered.text)}.`}` },
      h("line", { class: "base", x1: left, x2: width - right, y1: base, y2: base }),
      h(LearnedMark, { answered, curve, x, ends }),
      h("path", { class: "curve", d: path }),
      h("text", { x: left, y: ends[0]?.y }, ends[0]?.text),
      h("text", { x: width - right, y: ends[1]?.y, "text-anchor": "end" }, ends[1]?.text),
      h("text", { class: "soft", x: x(first.step), y: height - 7 }, `step ${count(first.step)}`),
      h("text", { class: "soft", x: x(last.step), y: height - 7, "text-anchor": "end" }, count(last.step)),
    ),
  );
}

/** @param {string} text */
function widthOf(text) {
  return text.length * LETTER.width;
}

/**
 * Return how high and how low the curve comes between two places.
 * @param {ChartPoint[]} curve
 * @param {number} from
 * @param {number} to
 */
function reach(curve, from, to) {
  const inside = curve.filter((point) => from <= point.x && point.x <= to).map((point) => point.y);
  const heights = [heightAt(curve, from), heightAt(curve, to), ...inside];
  return { highest: Math.min(...heights), lowest: Math.max(...heights) };
}

/** @param {ChartPoint[]} curve @param {number} at */
function heightAt(curve, at) {
  const next = curve.findIndex((point) => point.x >= at);
  const [before, after] = [curve[next < 0 ? curve.length - 1 : Math.max(0, next - 1)], curve[next < 0 ? curve.length - 1 : next]];
  if (before === undefined || after === undefined) return 0;
  const part = after.x === before.x ? 1 : Math.min(1, Math.max(0, (at - before.x) / (after.x - before.x)));
  return before.y + part * (after.y - before.y);
}

/** Put a label just above the curve. @param {ChartPoint[]} curve @param {number} x @param {string} text @returns {ChartLabel} */
function above(curve, x, text) {
  return { x, y: reach(curve, x - GAP, x + widthOf(text) + GAP).highest - LETTER.down - GAP, text };
}

/**
 * Return where a label beside a step collides with nothing: high up, else just above the curve, else below it, on either
 * side; null if nowhere.
 * @param {ChartPoint[]} curve
 * @param {number} at
 * @param {string} text
 * @param {ChartLabel[]} others
 * @returns {ChartLabel | null}
 */
function freePlace(curve, at, text, others) {
  const sides = [at + 6, at - 6 - widthOf(text)].filter((x) => x >= 0 && x + widthOf(text) <= CHART.width);
  for (const x of sides) {
    const { highest, lowest } = reach(curve, x - GAP, x + widthOf(text) + GAP);
    for (const y of [24, highest - LETTER.down - GAP, lowest + LETTER.up + GAP]) {
      const isInside = y - LETTER.up >= 0 && y + LETTER.down <= CHART.height - CHART.bottom;
      const isOffCurve = y + LETTER.down < highest || y - LETTER.up > lowest;
      const isFree = others.every((other) => x > other.x + widthOf(other.text) + GAP || other.x > x + widthOf(text) + GAP || Math.abs(y - other.y) > LETTER.up + LETTER.down);
      if (isInside && isOffCurve && isFree) return { x, y, text };
    }
  }
  return null;
}

/** What the step is called at which a query was first right. @type {Record<Answered["state"], string>} */
const FIRST_RIGHT = { known: "known", learned: "learned", "learned again": "first right", forgotten: "first right", never: "" };

/** @param {{answered: Answered | null, curve: ChartPoint[], x: (step: number) => number, ends: ChartLabel[]}} props */
function LearnedMark({ answered, curve, x, ends }) {
  const [first, last] = [curve[0], curve[curve.length - 1]];
  if (answered === null || answered.step < 0 || first === undefined || last === undefined || x(answered.step) > last.x) return null;
  const at = Math.max(x(answered.step), first.x);
  const height = heightAt(curve, at);
  const label = freePlace(curve, at, FIRST_RIGHT[answered.state], ends);
  const isCrossing = ends.some((end) => end.x - GAP < at && at < end.x + widthOf(end.text) + GAP);
  return h(
    Fragment,
    null,
    h("line", { class: "learned", x1: at, x2: at, y1: isCrossing ? height : Math.min(14, height), y2: CHART.height - CHART.bottom }),
    label !== null && h("text", { class: "learned", x: label.x, y: label.y }, label.text),
    h("circle", { class: "learned", cx: at, cy: height, r: 4 }),
  );
}
