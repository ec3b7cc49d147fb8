// Numbers as a person reads them.

const MINUS = "\u2212";

/** 0.8312 -> "83 %"; very small ones keep two digits. */
export function percent(probability) {
  const value = probability * 100;
  if (value >= 99.95) return "100 %";
  if (value >= 10) return `${value.toFixed(0)} %`;
  return value >= 0.1 ? `${value.toFixed(1)} %` : "< 0.1 %";
}

/** A log-probability, with a real minus sign. */
export function logarithm(value) {
  return value === -Infinity ? `${MINUS}\u221e` : signed(value.toFixed(2));
}

export function signed(text) {
  return text.replace("-", MINUS);
}

export function milliseconds(value) {
  return value >= 1000 ? `${(value / 1000).toFixed(2)} s` : value >= 10 ? `${value.toFixed(0)} ms` : `${value.toFixed(1)} ms`;
}

/** Bytes, in steps of 1000 as `forge` prints them. */
export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  for (; value >= 1000 && step < units.length - 1; step += 1) value /= 1000;
  return `${step && value < 100 ? value.toFixed(1) : value.toFixed(0)} ${units[step]}`;
}

/** A token's text with what cannot be seen made seen. */
export function visible(text) {
  return text.replaceAll(" ", "\u2423").replaceAll("\n", "\u23ce").replaceAll("\t", "\u21e5") || "\u2205";
}
