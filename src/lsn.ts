import { ConfigError } from './errors.ts';

/**
 * A Postgres log sequence number: a byte offset in the write-ahead log, 64 bits unsigned, held as a bigint.
 * LSNs compare as numbers only: as text '10/0' sorts before 'A/0'.
 *
 * https://www.postgresql.org/docs/current/datatype-pg-lsn.html
 */
export type Lsn = bigint;

const LSN_TEXT = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/;

/** Parses Postgres's `H/L` form, padded or not. Throws ConfigError on anything else. */
export function parseLsn(text: string): Lsn {
  const match = LSN_TEXT.exec(text);
  if (match === null) {
    throw new ConfigError(`not an LSN: ${JSON.stringify(text.slice(0, 40))}`, {
      hint: "an LSN is two hexadecimal numbers with a slash between, for example '16/B374D848'",
    });
  }
  return (BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`);
}

/** Prints an LSN as Postgres does: `16/B374D848`, upper case, not padded. */
export function formatLsn(lsn: Lsn): string {
  return `${(lsn >> 32n).toString(16)}/${(lsn & 0xffffffffn).toString(16)}`.toUpperCase();
}

/** Sixteen lower-case hexadecimal digits: text order is LSN order, for keys and file names. */
export function sortableLsn(lsn: Lsn): string {
  return lsn.toString(16).padStart(16, '0');
}
