// A sequence's log-probability as it grows, against a threshold, and what would happen below it.

import { drawn, element } from "./element.js";
import { logarithm, signed, visible } from "./figures.js";

const WIDE = 240, HIGH = 44, ROOM = 4;

/** The running sums of `pieces`' log-probabilities. */
export function sums(pieces) {
  let sum = 0;
  return pieces.map((piece) => (sum += piece.logProbs.reduce((one, other) => one + other, 0)));
}

/** What is judged: the sequence itself, or, where there are several, the best of them. */
export function judged(answers, threshold) {
  const best = answers.reduce((one, other) => (other.logProb > one.logProb ? other : one));
  const below = threshold !== null && best.logProb < threshold;
  return element("div", { class: `verdict${below ? " below" : ""}` }, course(best.pieces, threshold), words(best, answers.length, threshold, below));
}

function words(best, count, threshold, below) {
  if (threshold === null) return element("p", { class: "soft" }, "log-probability, token by token");
  const whole = count > 1 ? "The best of all has" : "The answer has";
  if (!below) return element("p", {}, `${whole} ${logarithm(best.logProb)}: it reaches the threshold ${signed(String(threshold))}.`);
  const at = sums(best.pieces).findIndex((sum) => sum < threshold);
  return element(
    "p", {}, `${whole} ${logarithm(best.logProb)}: it fell below ${signed(String(threshold))} at token ${at + 1}, `,
    element("code", {}, visible(best.pieces[at]?.text ?? "")), ". ",
    element("code", {}, `forge generate --min-logprob ${threshold}`), " would show it and end with exit code 17, so that a script can turn it away.",
  );
}

function course(pieces, threshold) {
  const values = [0, ...sums(pieces)];
  const least = Math.min(...values, threshold ?? 0) || -1;
  const x = (at) => ROOM + (at / Math.max(1, values.length - 1)) * (WIDE - 2 * ROOM);
  const y = (value) => ROOM + (value / least) * (HIGH - 2 * ROOM);
  const line = values.map((value, at) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const bar = threshold !== null && drawn("line", { class: "bar", x1: 0, x2: WIDE, y1: y(threshold), y2: y(threshold) });
  return drawn("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "course", "aria-hidden": true }, drawn("polyline", { points: line }), bar, drawn("circle", { cx: x(values.length - 1), cy: y(values.at(-1)), r: 3 }));
}
