import { connect } from '../../../src/source/connection.ts';
import { tapCopyData } from '../../../src/source/copy-data-tap.ts';
import { program } from '../program.ts';

export interface CopyInput {
  readonly url: string;
  readonly sql: string;
}

export interface CopyOutput {
  /** From the statement to its end, without the connection's set-up. */
  readonly ms: number;
  readonly bytes: number;
}

/** Runs one COPY … TO STDOUT and throws its bytes away. */
await program(async ({ url, sql }: CopyInput): Promise<CopyOutput> => {
  const client = await connect(url, { applicationName: 'bench copy' });
  let bytes = 0;
  tapCopyData(
    client,
    (_bytes, from, to) => {
      bytes += to - from;
      return true;
    },
    () => undefined,
    (error) => {
      throw error;
    },
  );
  const started = performance.now();
  await client.query(sql);
  const ms = performance.now() - started;
  await client.end();
  return { ms, bytes };
});
