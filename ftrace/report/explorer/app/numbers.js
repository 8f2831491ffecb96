// @ts-check
/**
 * Numbers as text, like those of the terminal views. Negative ones have a true minus sign (−).
 *
 * scoreText(score, largest)   "+0.406": sign, and as many decimals as the largest beside it needs for three digits, or it itself
 * percent(share)              "42%", "4.2%", "<0.1%", ">99%"
 * nats(loss), lossText(a, b)  "24.9", "24.9 → 0.02"
 * count(n), counted(n, noun)  "1,200", "1,200 examples"
 * rankText(rank, ties)        "3", "=3" if other examples have the same score
 * stepText(step)              "1,200", "never", ""
 * snapshotText(name)          "step 1,200" of a snapshot "step-00001200", any other name as it is
 */

const UNKNOWN = "–";

/** @param {string} text */
function withMinus(text) {
  return text.replace("-", "−");
}

/**
 * Format a score with its sign; none that isn't 0 is shown as 0.
 * @param {number | null} score
 * @param {number} largest  The largest absolute score beside it.
 */
function scoreText(score, largest) {
  if (score === null) return UNKNOWN;
  if (score === 0) return "0";
  const sign = score < 0 ? "−" : "+";
  const size = Math.abs(score);
  if (!(largest >= 1e-4 && largest < 1e7)) {
    return sign + size.toExponential(2).replace("e-", "e−");
  }
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(largest)));
  if (size < 10 ** -decimals) return scoreText(score, size); // which would be shown as 0
  return sign + size.toFixed(decimals);
}

/** @param {(number | null)[]} scores */
function largestOf(scores) {
  return scores.reduce((/** @type {number} */ most, score) => Math.max(most, Math.abs(score ?? 0)), 0);
}

/**
 * Format a share in percent: with a decimal below 10, and never a rounded 0 or 100.
 * @param {number | null} share
 */
function percent(share) {
  if (share === null) return UNKNOWN;
  if (share === 0 || share === 1) return `${share * 100}%`;
  const size = Math.abs(share);
  if (size < 0.0005) return share < 0 ? ">−0.1%" : "<0.1%";
  if (size >= 0.995 && size < 1) return share < 0 ? "<−99%" : ">99%";
  return withMinus(`${(share * 100).toFixed(size < 0.0995 ? 1 : 0)}%`);
}

/** @param {number | null} loss */
function nats(loss) {
  if (loss === null) return UNKNOWN;
  if (loss > 0 && loss < 0.005) return "<0.01";
  if (loss > 0 && loss < 1) return loss.toFixed(2);
  return withMinus(String(Number(loss.toPrecision(3))));
}

/**
 * @param {number | null} first
 * @param {number | null} last
 */
function lossText(first, last) {
  return `${nats(first)} → ${nats(last)}`;
}

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** @param {number} number */
function count(number) {
  return withMinus(WHOLE.format(number));
}

/**
 * @param {number} number
 * @param {string} noun
 * @param {string} [plural]
 */
function counted(number, noun, plural) {
  return `${count(number)} ${number === 1 ? noun : (plural ?? `${noun}s`)}`;
}

/**
 * @param {number | null} rank
 * @param {number} ties  How many other examples have the same score.
 */
function rankText(rank, ties) {
  return rank === null ? UNKNOWN : ties > 0 ? `=${count(rank)}` : count(rank);
}

/** @param {number | null} step  -1: never; null: nobody asked. */
function stepText(step) {
  return step === null ? "" : step < 0 ? "never" : count(step);
}

const SNAPSHOT = /^step-(\d{1,15})$/;

/** @param {string} name */
function snapshotText(name) {
  const step = SNAPSHOT.exec(name)?.[1];
  return step === undefined ? plain(name) : `step ${count(Number(step))}`;
}
