// Tokens as they are shown: marked by probability, with what else could have stood there.

import { element } from "./element.js";
import { logarithm, percent, visible } from "./figures.js";

/** From the least probability on, in classes p0 to p4: lightness and the kind of underline both say it, no hue has to be told apart. */
export const SCALE = [
  { least: 0.9, words: "90 % and more" },
  { least: 0.5, words: "50 to 90 %" },
  { least: 0.2, words: "20 to 50 %" },
  { least: 0.05, words: "5 to 20 %" },
  { least: 0, words: "below 5 %" },
];

/** Tokens of one piece of text: several where a character spans them. */
export class Piece {
  constructor(text, logProbs, tops) {
    this.text = text;
    this.logProbs = logProbs;
    this.tops = tops;
  }

  /** The geometric mean of its tokens' probabilities; null where they are not known. */
  get probability() {
    const sum = this.logProbs.reduce((one, other) => one + other, 0);
    return this.logProbs.length ? Math.exp(sum / this.logProbs.length) : null;
  }

  same(other) {
    return this.text === other.text;
  }
}

/** Joins tokens that come one by one to pieces: those without a text of their own wait for the one that has it. */
export class Spelling {
  #held = [];

  hear(token) {
    this.#held.push(token);
    return token.text ? this.close(token.text) : null;
  }

  /** Text that came without a token: it is of those that wait. */
  close(text) {
    const held = this.#held;
    this.#held = [];
    return new Piece(text, held.map((each) => each.logProb), held.at(-1)?.tops ?? []);
  }
}

export function legend() {
  const steps = SCALE.map((step, at) => element("li", {}, element("span", { class: `token p${at}`, "aria-hidden": true }, "token"), step.words));
  return [element("h2", {}, "Probability of each token"), element("ul", {}, ...steps)];
}

const PIECES = new WeakMap();

/** The piece's element. */
export function shown(piece) {
  const { probability } = piece;
  const at = probability === null ? -1 : SCALE.findIndex((step) => probability >= step.least);
  const line = piece.text.includes("\n") ? " line" : "";
  const made = element("span", { class: `token${at < 0 ? "" : ` p${at}`}${line}`, tabindex: -1 }, piece.text);
  PIECES.set(made, piece);
  return made;
}

/**
 * Shows details of the tokens below `root` in `detail`: on pointing, on a tap, and on the arrow keys, which `tell` reads out.
 * `why` says of a token's element why there are no alternatives.
 */
export function explain(root, detail, tell, why) {
  let held = null;
  const hide = () => { detail.hidden = true; held = null; };
  const show = (token) => {
    const piece = PIECES.get(token);
    if (!piece || piece.probability === null) return hide();
    held = token;
    detail.replaceChildren(...described(piece, why(token)));
    detail.hidden = false;
    place(detail, token);
  };
  const tokenAt = (event) => event.target.closest?.(".token");
  root.addEventListener("pointerover", (event) => { const token = tokenAt(event); if (token) show(token); });
  root.addEventListener("pointerout", (event) => { if (tokenAt(event) && !event.relatedTarget?.closest?.(".token")) hide(); });
  root.addEventListener("focusin", (event) => { const token = tokenAt(event); if (token) { show(token); tell(spoken(PIECES.get(token))); } });
  root.addEventListener("focusout", hide);
  root.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    const answer = event.target.closest(".text");
    if (!answer) return;
    const all = [...answer.querySelectorAll(".token")];
    const from = all.indexOf(event.target);
    const to = Math.max(0, Math.min(all.length - 1, from + step));
    all[to]?.focus();
    event.preventDefault();
  });
  addEventListener("scroll", () => { if (held) place(detail, held); }, { passive: true, capture: true });
}

function described(piece, why) {
  const sum = piece.logProbs.reduce((one, other) => one + other, 0);
  const many = piece.logProbs.length > 1 ? `, ${piece.logProbs.length} tokens` : "";
  const head = element("p", { class: "head" }, element("code", {}, visible(piece.text)), element("b", {}, percent(piece.probability)), element("span", {}, `log ${logarithm(sum)}${many}`));
  if (!piece.tops.length) return [head, element("p", { class: "soft" }, why)];
  const rows = piece.tops.map((top) => {
    const probability = Math.exp(top.logProb);
    const picked = top.text === piece.text;
    return element("li", { class: picked && "picked", "style:--share": probability }, element("code", {}, visible(top.text)), element("span", { class: "bar" }), element("span", {}, percent(probability)));
  });
  const ranked = piece.tops.some((top) => top.text === piece.text);
  return [head, element("ol", {}, ...rows), !ranked && element("p", { class: "soft" }, `picked from beyond the ${rows.length} likeliest`)].filter(Boolean);
}

function spoken(piece) {
  if (!piece || piece.probability === null) return "";
  const others = piece.tops.filter((top) => top.text !== piece.text).slice(0, 3).map((top) => `${top.text.trim() || "blank"} ${percent(Math.exp(top.logProb))}`);
  return `${piece.text.trim() || "blank"}, ${percent(piece.probability)}${others.length ? `; else ${others.join(", ")}` : ""}`;
}

/** Below the token, or above it where there is no room; never beyond the window. */
function place(detail, token) {
  const at = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const { width, height } = detail.getBoundingClientRect();
  const below = at.bottom + 8 + height < innerHeight;
  detail.style.setProperty("left", `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`);
  detail.style.setProperty("top", `${below ? at.bottom + 8 : Math.max(8, at.top - height - 8)}px`);
}
