import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import Database from 'better-sqlite3';
import pg from 'pg';
import { RivuletError } from '../../src/errors.ts';
import { withReadYourWrites } from '../../src/read/middleware/express.ts';
import { trackWrites } from '../../src/read/track-writes.ts';
import { openReplica, type Replica } from '../../src/replica/replica.ts';
import { decodeToken, encodeToken, laterToken, type Position } from '../../src/token.ts';
import { readRows, readTorn, writeQuery } from './database.ts';
import type { BatchRequest, NodeConfig, Script, ScriptResult, StepResult } from './wire.ts';

/** One app process of the checker: its configuration is its first argument. Prints `ready URL`. */
const config = JSON.parse(process.argv[2]!) as NodeConfig;
const OTHER_EPOCH_RETRY_MS = 50;

const pool = new pg.Pool({ connectionString: config.postgres, max: 6, application_name: config.name });
pool.on('error', () => undefined);
const tracker = trackWrites(pool, { onError: () => undefined });
const replicas = await Promise.all(config.replicas.map((options) => openReplica(options)));

/** Waits for the token; for one of a history that has ended, for what Postgres gives in its place. */
async function waitFor(replica: Replica, wanted: Position): Promise<Position> {
  const deadlineMs = performance.now() + config.timeoutMs;
  let token = wanted;
  for (;;) {
    try {
      await replica.waitFor(token, { timeoutMs: Math.max(1, deadlineMs - performance.now()) });
      return token;
    } catch (error) {
      if (
        !(error instanceof RivuletError) ||
        error.code !== 'EPOCH_MISMATCH' ||
        performance.now() > deadlineMs
      )
        throw error;
      token = await tracker.take();
      if (token.epoch !== replica.epoch) await delay(OTHER_EPOCH_RETRY_MS);
    }
  }
}

/** The library, as an app uses it. */
async function runScript(script: Script, { usesTokens, isTorn }: BatchRequest): Promise<ScriptResult> {
  let token = script.token === null ? null : decodeToken(script.token);
  const carry = (next: Position): void => {
    token = (token === null ? null : laterToken(token, next)) ?? next;
  };
  const results: StepResult[] = [];
  for (const step of script.steps) {
    try {
      if ('write' in step) {
        const written = await tracker.collect(() => pool.query(writeQuery(script.session, step.write)));
        if (written.token === null) throw written.error ?? new Error('a commit without a token');
        if (usesTokens) carry(decodeToken(written.token));
        results.push({ written: step.write });
        continue;
      }
      const replica = replicas[step.read]!;
      if (usesTokens && token !== null) carry(await waitFor(replica, token));
      const sessions = [script.session, step.other];
      const { rows, position } = isTorn
        ? { rows: readTorn(replica.db, sessions), position: null }
        : readRows(replica.db, sessions);
      if (usesTokens && position !== null) carry(position);
      results.push({ rows: rows.map((row) => [row.session, row.version, row.sum]), replica: step.read });
    } catch (error) {
      results.push({ failed: (error as Error).message });
    }
  }
  return { session: script.session, token: token === null ? null : encodeToken(token), results };
}

type Rows = readonly { readonly session: number; readonly version: number; readonly sum: number }[];

/** One write or one read of the session in the query; who reads, and how, is the caller's. */
async function answerOne(
  request: IncomingMessage,
  response: ServerResponse,
  read: (sessions: readonly number[]) => Rows,
): Promise<void> {
  const { searchParams } = new URL(request.url!, 'http://app');
  const session = Number(searchParams.get('session'));
  if (request.method === 'POST') {
    await pool.query(writeQuery(session, Number(searchParams.get('version'))));
    response.end('{}');
    return;
  }
  const rows = read([session, Number(searchParams.get('other'))]);
  response.end(JSON.stringify(rows.map((row) => [row.session, row.version, row.sum])));
}

/** An app that knows nothing of tokens: the proxy in front of it does. */
function answerPlainly(request: IncomingMessage, response: ServerResponse): Promise<void> {
  return answerOne(request, response, (sessions) => {
    // Opened each time, as a process that ends after each request would: after a new bootstrap it is another file.
    const db = new Database(config.plainFile!, { readonly: true, fileMustExist: true });
    try {
      return readRows(db, sessions).rows;
    } finally {
      db.close();
    }
  });
}

/** An app that has the middleware do it all. */
const [replica] = replicas;
const answerWithMiddleware =
  replica === undefined
    ? null
    : withReadYourWrites({ replica, pool, waitMs: config.timeoutMs }, (request, response) =>
        answerOne(request, response, (sessions) => readRows(replica.db, sessions).rows),
      );

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  if (request.url !== '/batch') {
    await (answerWithMiddleware ?? answerPlainly)(request, response);
    return;
  }
  let body = '';
  for await (const chunk of request.setEncoding('utf8')) body += chunk;
  const batch = JSON.parse(body) as BatchRequest;
  const results = await Promise.all(batch.scripts.map((script) => runScript(script, batch)));
  response.end(JSON.stringify(results));
}

const server = createServer((request, response) => {
  answer(request, response).catch((error: unknown) => {
    if (response.headersSent) response.destroy();
    else response.writeHead(500).end((error as Error).message);
  });
});
server.listen(config.port, '127.0.0.1');
await once(server, 'listening');
console.log(`ready http://127.0.0.1:${(server.address() as AddressInfo).port}`);
