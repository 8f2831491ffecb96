// @ts-check
/** A query's loss over training, as a small picture: LossChart({loss}). */

/** @param {{loss: Loss}} props */
function LossChart({ loss }) {
  return null;
}
