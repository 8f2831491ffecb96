// @ts-check
/**
 * A query's loss over training, as a small picture: LossChart({loss}).
 *
 * Its ends and the step at which the query was learned are named in it, so that it needs no axes and no legend.
 */

const CHART = { width: 340, height: 132, left: 2, right: 2, top: 26, bottom: 24 };

/** @param {{loss: Loss}} props */
function LossChart({ loss }) {
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
  const path = points.map(({ step, value }, place) => `${place === 0 ? "M" : "L"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const base = height - bottom;
  return h(
    "figure",
    { class: "loss-chart" },
    h(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Loss over training, ${lossText(first.value, last.value)} nats. ${learnedText(loss)}` },
      h("line", { class: "base", x1: left, x2: width - right, y1: base, y2: base }),
      h(LearnedMark, { loss, points, x, y }),
      h("path", { class: "curve", d: path }),
      h("text", { x: x(first.step), y: y(first.value) - 7 }, `${nats(first.value)} nats`),
      h("text", { x: x(last.step), y: Math.min(...points.filter(({ step }) => x(step) > width - 50).map(({ value }) => y(value))) - 7, "text-anchor": "end" }, nats(last.value)),
      h("text", { class: "soft", x: x(first.step), y: height - 7 }, `step ${count(first.step)}`),
      h("text", { class: "soft", x: x(last.step), y: height - 7, "text-anchor": "end" }, count(last.step)),
    ),
  );
}

/** @param {{loss: Loss, points: {step: number, value: number}[], x: (step: number) => number, y: (value: number) => number}} props */
function LearnedMark({ loss, points, x, y }) {
  const step = loss.learned_step;
  const reached = points.findIndex((point) => step !== null && point.step >= step);
  if (step === null || step < 0 || reached < 0) return null;
  const [before, after] = [points[Math.max(0, reached - 1)], points[reached]];
  if (before === undefined || after === undefined) return null;
  const part = after.step === before.step ? 1 : (step - before.step) / (after.step - before.step);
  const at = x(Math.max(step, points[0]?.step ?? 0));
  const isHigh = at > 90; // clear of the first value
  const isLeft = at > CHART.width * 0.62;
  return h(
    Fragment,
    null,
    h("line", { class: "learned", x1: at, x2: at, y1: isHigh ? 14 : 34, y2: CHART.height - CHART.bottom }),
    h("text", { class: "learned", x: at + (isLeft ? -6 : 6), y: isHigh ? 24 : 44, "text-anchor": isLeft ? "end" : "start" }, "learned"),
    h("circle", { class: "learned", cx: at, cy: y(before.value + part * (after.value - before.value)), r: 4 }),
  );
}

/** @param {Loss} loss */
function learnedText({ learned_step: step, right_at_end: right }) {
  if (step === null) return "";
  if (step < 0) return "Never answered right.";
  return `First answered right at step ${count(step)}${right === false ? ", but not at the end" : ""}.`;
}
