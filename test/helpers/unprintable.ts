/** With each level that a value is nested in, its quotes are doubled where it is printed. */
const LEVELS = [0, 1, 2, 3, 4, 5, 6];
const QUOTES = 10_000_000;

/** Makes the types that it needs. */
export const UNPRINTABLE_TYPES = LEVELS.map(
  (level) => `create type nested_${level} as (v ${level === 0 ? 'text' : `nested_${level - 1}`})`,
).join(';');

export const UNPRINTABLE_TYPE = `nested_${LEVELS.length - 1}`;

/** A value that takes some KB on the server, 10 MB in binary, and prints as more than 1 GB. */
export const UNPRINTABLE = LEVELS.reduce(
  (inner, level) => `row(${inner})::nested_${level}`,
  `repeat('"', ${QUOTES})`,
);
