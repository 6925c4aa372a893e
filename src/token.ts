import { createHmac, timingSafeEqual } from 'node:crypto';
import { ConfigError, RivuletError } from './errors.ts';
import type { Lsn } from './lsn.ts';

/** A point of one history. Positions of different epochs have no order. */
export interface Position {
  readonly epoch: string;
  /** Up to where everything is in the file. */
  readonly lsn: Lsn;
  /**
   * While tables are read again `lsn` stays where it was, and all others go on: how far those are, which is what a
   * reader has been shown. Missing where it would be `lsn`.
   */
  readonly seen?: Lsn | undefined;
}

/** How far a reader of a file that is there can have seen. */
export function seenLsn({ lsn, seen }: Position): Lsn {
  return seen !== undefined && seen > lsn ? seen : lsn;
}

export interface TokenKey {
  /** Names the key inside the token: up to 16 letters, digits, `-` and `_`. Never reuse one for another secret. */
  readonly id: string;
  /** At least 16 bytes that nobody can guess; a string counts as UTF-8. */
  readonly secret: string | Uint8Array;
}

/**
 * Keys for signed tokens. New tokens carry the current key; those of `previous` keys are still taken, so a key is
 * rotated by moving it there for as long as its tokens live.
 */
export interface TokenKeys {
  readonly current: TokenKey;
  readonly previous?: readonly TokenKey[];
}

/** The format of the token, its first character. */
const VERSION = '1';

/** Of the 32: enough for what a forged token could do, and 24 characters of base64url without a bit to spare. */
const MAC_BYTES = 18;

const LEAST_SECRET_BYTES = 16;
const KEY_ID = /^[A-Za-z0-9_-]{1,16}$/;
const EPOCH = /^[0-9a-f]{1,32}$/;
const TOKEN =
  /^1\.([0-9a-f]{1,32})\.([0-9a-fA-F]{1,16})(?:-([0-9a-fA-F]{1,16}))?(?:\.([A-Za-z0-9_-]{1,16})\.([A-Za-z0-9_-]{24}))?$/;

/** A page of the WAL; 8 kB unless the server was compiled otherwise. */
const WAL_PAGE_BYTES = 8192n;
/** initdb's default; `wal_segment_size` tells. */
const WAL_SEGMENT_BYTES = 16n * 1024n * 1024n;
/** SizeOfXLogShortPHD and SizeOfXLogLongPHD: the header of a WAL page, and of a segment's first one. */
const PAGE_HEADER_BYTES = 0x18n;
const SEGMENT_HEADER_BYTES = 0x28n;

/**
 * `1.<epoch>.<lsn in hex>`, with `-<seen in hex>` where that is further, and with keys `.<key id>.<mac>` behind it: the first 18 bytes of HMAC-SHA-256, in
 * base64url, of all that stands before `.<mac>`. ASCII letters, digits, `.`, `-` and `_` only: it needs no escape in
 * a URL, a cookie or a header.
 */
export function encodeToken(position: Position, keys?: TokenKeys): string {
  if (!EPOCH.test(position.epoch))
    throw new ConfigError(`not an epoch: ${JSON.stringify(position.epoch.slice(0, 40))}`);
  const seen = seenLsn(position);
  const further = seen > position.lsn ? `-${seen.toString(16)}` : '';
  const plain = `${VERSION}.${position.epoch}.${position.lsn.toString(16)}${further}`;
  if (keys === undefined) return plain;
  const signed = `${plain}.${checked(keys.current).id}`;
  return `${signed}.${macOf(signed, keys.current).toString('base64url')}`;
}

/**
 * What a token carries. With keys, only a token that one of them signed is taken; without, a signature is not
 * looked at.
 *
 * Throws TOKEN_MALFORMED on what is no token, TOKEN_FORGED where the signature is missing or wrong.
 */
export function decodeToken(text: string, keys?: TokenKeys): Position {
  const match = typeof text === 'string' ? TOKEN.exec(text) : null;
  if (match === null) {
    const isOther = typeof text === 'string' && /^[0-9A-Za-z]\.[0-9a-f]+\./.test(text) && text[0] !== VERSION;
    throw new RivuletError(
      'TOKEN_MALFORMED',
      isOther ? `a token of version ${text[0]}, which this one does not know` : 'this is not a token',
      { hint: 'pass on a token as it was given: 1.EPOCH.LSN, in hexadecimal, perhaps with a signature' },
    );
  }
  const [, epoch, lsn, seen, keyId, mac] = match;
  if (keys !== undefined) verify(text, keyId, mac, keys);
  const position = { epoch: epoch!, lsn: BigInt(`0x${lsn}`) };
  return seen === undefined ? position : { ...position, seen: BigInt(`0x${seen}`) };
}

/**
 * What contains both of two positions of one epoch: the later one, or something later than both. Null for those of
 * two epochs, which have no order.
 */
export function laterToken(a: Position, b: Position): Position | null {
  if (a.epoch !== b.epoch) return null;
  const later = b.lsn > a.lsn ? b : a;
  const earlier = later === a ? b : a;
  return seenLsn(earlier) > seenLsn(later) ? { ...later, seen: seenLsn(earlier) } : later;
}

/** Whether whoever is at `position` has all that `wanted` stands for. */
export function contains(position: Position, wanted: Position): boolean {
  return (
    position.epoch === wanted.epoch && wanted.lsn <= position.lsn && seenLsn(wanted) <= seenLsn(position)
  );
}

/**
 * The LSN that a token carries for what `pg_current_wal_insert_lsn()` says.
 *
 * Where the last record ends exactly with its page, the insert position already stands behind the next page's
 * header, while flush, replication and keepalive positions stay at the page's boundary until something else is
 * written: on an idle server nobody would ever get there. No record can end inside or right behind a header, so
 * the boundary is the same point.
 *
 * https://www.postgresql.org/docs/current/wal-internals.html
 */
export function tokenLsn(insertLsn: Lsn, walSegmentBytes: bigint = WAL_SEGMENT_BYTES): Lsn {
  const header = insertLsn % walSegmentBytes < WAL_PAGE_BYTES ? SEGMENT_HEADER_BYTES : PAGE_HEADER_BYTES;
  return insertLsn % WAL_PAGE_BYTES === header ? insertLsn - header : insertLsn;
}

function verify(text: string, keyId: string | undefined, mac: string | undefined, keys: TokenKeys): void {
  const signed = text.slice(0, text.lastIndexOf('.'));
  const key = [keys.current, ...(keys.previous ?? [])].find(({ id }) => id === keyId);
  const isGenuine =
    key !== undefined && timingSafeEqual(macOf(signed, checked(key)), Buffer.from(mac!, 'base64url'));
  if (isGenuine) return;
  throw new RivuletError(
    'TOKEN_FORGED',
    keyId === undefined ? 'the token is not signed' : 'the signature of the token is not one of ours',
    {
      hint: 'sign and check tokens with the same keys everywhere; a key that was replaced belongs among the previous ones',
    },
  );
}

function macOf(text: string, key: TokenKey): Buffer {
  return createHmac('sha256', key.secret).update(text).digest().subarray(0, MAC_BYTES);
}

/** Throws CONFIG for keys that cannot sign: found at the start, not with the first token. */
export function checkTokenKeys(keys: TokenKeys | undefined): void {
  if (keys === undefined) return;
  const { current, previous = [] } = Object(keys) as TokenKeys;
  if (!Array.isArray(previous)) throw new ConfigError('the previous token keys are not a list');
  for (const key of [current, ...previous]) checked(key);
}

function checked(key: TokenKey): TokenKey {
  const { id, secret } = Object(key) as Partial<TokenKey>;
  if (typeof id !== 'string' || !KEY_ID.test(id)) {
    throw new ConfigError('the id of a token key is not one', {
      hint: 'a key is { id, secret }; the id has up to 16 letters, digits, - and _',
    });
  }
  if (typeof secret !== 'string' && !(secret instanceof Uint8Array))
    throw new ConfigError(`the secret of the token key ${id} is neither text nor bytes`);
  if (Buffer.byteLength(secret) < LEAST_SECRET_BYTES)
    throw new ConfigError(`the secret of the token key ${id} has less than ${LEAST_SECRET_BYTES} bytes`);
  return key;
}
