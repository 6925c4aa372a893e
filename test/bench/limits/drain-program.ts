import { parseLsn } from '../../../src/lsn.ts';
import { ReplicationStream } from '../../../src/source/replication-stream.ts';
import { program } from '../program.ts';

export interface DrainInput {
  readonly url: string;
  readonly slot: string;
  readonly publication: string;
  readonly until: string;
}

export interface DrainOutput {
  readonly bytes: number;
  readonly messages: number;
}

/** Reads a slot to a position with our own client, and throws the bytes away. */
await program(async ({ url, slot, publication, until }: DrainInput): Promise<DrainOutput> => {
  const end = parseLsn(until);
  const done = new AbortController();
  let bytes = 0;
  let messages = 0;
  const stream = new ReplicationStream({
    url,
    slot,
    publication,
    from: 0n,
    onBegun: () => Promise.resolve(),
    onMessage: (source, from, to) => {
      bytes += to - from;
      messages++;
      // Commit: type, flags, commit LSN, end LSN.
      if (source[from] === 0x43 && source.readBigUInt64BE(from + 10) >= end) done.abort();
      return true;
    },
    onKeepalive: (position) => {
      if (position >= end) done.abort();
    },
    onChunk: () => undefined,
    durablePosition: () => 0n,
  });
  await stream.run(done.signal);
  return { bytes, messages };
});
