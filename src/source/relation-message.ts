/** A Relation message of pgoutput: what the server says of a table before the first row that it sends of it. */
export interface RelationMessage {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** d, n, f or i, as in pg_class.relreplident. */
  readonly identity: string;
  readonly columns: readonly {
    readonly name: string;
    readonly typeOid: number;
    readonly typeModifier: number;
    /** Part of the key that is sent with UPDATE and DELETE. */
    readonly identity: boolean;
  }[];
}

/** `at` is behind the type byte. https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html */
export function readRelationMessage(bytes: Buffer, at: number): RelationMessage {
  const text = (): string => {
    const end = bytes.indexOf(0, at);
    const value = bytes.utf8Slice(at, end);
    at = end + 1;
    return value;
  };
  const oid = bytes.readUInt32BE(at);
  at += 4;
  // An empty schema name stands for pg_catalog.
  const schema = text() || 'pg_catalog';
  const name = text();
  const identity = String.fromCharCode(bytes[at]!);
  const count = bytes.readUInt16BE(at + 1);
  at += 3;
  const columns = [];
  for (let index = 0; index < count; index++) {
    const flags = bytes[at++]!;
    const columnName = text();
    columns.push({
      name: columnName,
      typeOid: bytes.readUInt32BE(at),
      typeModifier: bytes.readInt32BE(at + 4),
      identity: (flags & 1) === 1,
    });
    at += 8;
  }
  return { oid, schema, name, identity, columns };
}
