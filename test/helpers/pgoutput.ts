/** Builders of pgoutput messages, byte by byte as the manual gives them. */

const int8 = (value: number): Buffer => Buffer.from([value & 0xff]);
const int16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
};
const int32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value | 0);
  return bytes;
};
const int64 = (value: bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64BE(BigInt.asIntN(64, value));
  return bytes;
};
const cstring = (value: string): Buffer => Buffer.from(`${value}\0`);
const char = (value: string): Buffer => Buffer.from(value, 'latin1');

export type TupleValue = string | null | { readonly unchanged: true };
export const unchanged: TupleValue = { unchanged: true };

export function tuple(values: readonly TupleValue[]): Buffer {
  return Buffer.concat([
    int16(values.length),
    ...values.flatMap((value) => {
      if (value === null) return [char('n')];
      if (typeof value !== 'string') return [char('u')];
      const text = Buffer.from(value);
      return [char('t'), int32(text.length), text];
    }),
  ]);
}

export const pgoutput = {
  begin: (finalLsn: bigint, xid: number, timeUs = 0n): Buffer =>
    Buffer.concat([char('B'), int64(finalLsn), int64(timeUs), int32(xid)]),
  commit: (commitLsn: bigint, endLsn: bigint, timeUs = 0n): Buffer =>
    Buffer.concat([char('C'), int8(0), int64(commitLsn), int64(endLsn), int64(timeUs)]),
  relation: (
    oid: number,
    schema: string,
    name: string,
    columns: readonly { name: string; typeOid?: number; identity?: boolean }[],
    identity = 'd',
  ): Buffer =>
    Buffer.concat([
      char('R'),
      int32(oid),
      cstring(schema),
      cstring(name),
      char(identity),
      int16(columns.length),
      ...columns.flatMap((column) => [
        int8(column.identity ? 1 : 0),
        cstring(column.name),
        int32(column.typeOid ?? 25),
        int32(-1),
      ]),
    ]),
  insert: (oid: number, values: readonly TupleValue[]): Buffer =>
    Buffer.concat([char('I'), int32(oid), char('N'), tuple(values)]),
  update: (
    oid: number,
    values: readonly TupleValue[],
    old?: { kind: 'K' | 'O'; values: readonly TupleValue[] },
  ): Buffer =>
    Buffer.concat([
      char('U'),
      int32(oid),
      ...(old === undefined ? [] : [char(old.kind), tuple(old.values)]),
      char('N'),
      tuple(values),
    ]),
  delete: (oid: number, kind: 'K' | 'O', values: readonly TupleValue[]): Buffer =>
    Buffer.concat([char('D'), int32(oid), char(kind), tuple(values)]),
  truncate: (oids: readonly number[]): Buffer =>
    Buffer.concat([char('T'), int32(oids.length), int8(0), ...oids.map(int32)]),
  message: (prefix: string, content: string, transactional = true): Buffer =>
    Buffer.concat([
      char('M'),
      int8(transactional ? 1 : 0),
      int64(0n),
      cstring(prefix),
      int32(Buffer.byteLength(content)),
      Buffer.from(content),
    ]),

  /** A message as it is within a streamed block: with the (sub)transaction that it is of. */
  within: (xid: number, message: Buffer): Buffer =>
    Buffer.concat([message.subarray(0, 1), int32(xid), message.subarray(1)]),
  streamStart: (xid: number, isFirst: boolean): Buffer =>
    Buffer.concat([char('S'), int32(xid), int8(isFirst ? 1 : 0)]),
  streamStop: (): Buffer => char('E'),
  streamCommit: (xid: number, commitLsn: bigint, endLsn: bigint, timeUs = 0n): Buffer =>
    Buffer.concat([char('c'), int32(xid), int8(0), int64(commitLsn), int64(endLsn), int64(timeUs)]),
  streamAbort: (xid: number, subxid: number): Buffer => Buffer.concat([char('A'), int32(xid), int32(subxid)]),
};
