// Beams as a tree: what they share stands once, and parts where they do.

import { element } from "./element.js";
import { logarithm, percent } from "./figures.js";
import { shown } from "./tokens.js";

/**
 * The tree of `beams`, each {pieces, logProb, rank}: nodes {pieces, beams, children}, where `beams` end at the node.
 * The best beam's branch comes first.
 */
export function tree(beams, from = 0) {
  const [first] = beams;
  let to = from;
  while (beams.every((beam) => beam.pieces.length > to && beam.pieces[to].same(first.pieces[to]))) to += 1;
  const groups = new Map();
  for (const beam of beams.filter((each) => each.pieces.length > to)) {
    const word = beam.pieces[to].text;
    groups.set(word, [...(groups.get(word) ?? []), beam]);
  }
  const ended = beams.filter((beam) => beam.pieces.length === to);
  return { pieces: first.pieces.slice(from, to), beams: ended, children: [...groups.values()].map((each) => tree(each, to)) };
}

/** The tree's element: lists in lists. */
export function grown(beams) {
  const root = tree(beams);
  return element("ul", { class: "tree", "aria-label": `${beams.length} beams, the likeliest first` }, branch(root));
}

function branch(node) {
  const text = element("span", { class: "text", tabindex: 0, role: "group", "aria-label": "Tokens of this branch; arrow keys move" }, ...node.pieces.map(shown));
  const leaves = node.beams.map(leaf);
  const below = node.children.length > 0 && element("ul", {}, ...node.children.map(branch));
  return element("li", {}, element("div", { class: "run" }, node.pieces.length > 0 && text, ...leaves), below);
}

function leaf(beam) {
  const mean = beam.count ? percent(Math.exp(beam.logProb / beam.count)) : "";
  const words = `beam ${beam.rank}: log-probability ${logarithm(beam.logProb)}, ${mean} a token`;
  return element("span", { class: `leaf${beam.rank === 1 ? " best" : ""}`, title: words }, element("b", {}, beam.rank), ` ${logarithm(beam.logProb)}`, element("span", { class: "soft" }, ` ${mean} a token`));
}
