import express from 'express';
import pg from 'pg';
import { openReplica, readYourWrites } from 'rivulet';

const { DATABASE_URL, REPLICATOR_URL = 'http://127.0.0.1:4840', RIVULET_TOKEN } = process.env;
const file = process.env.NOTES_FILE ?? 'notes.db';
const pool = new pg.Pool({ connectionString: DATABASE_URL });
const replica = await openReplica({ file, replicator: REPLICATOR_URL, token: RIVULET_TOKEN });
const middleware = readYourWrites({ replica, pool });
const app = express();
app.use(express.json(), middleware);

app.post('/notes', async (request, response) => {
  // Postgres, through anything that uses this pool. The answer gets a cookie that holds the token.
  const insert = 'insert into note (text) values ($1) returning id, text';
  const { rows } = await pool.query(insert, [request.body?.text]);
  response.status(201).json(rows[0]);
});
app.get('/notes', (_request, response) => {
  // The file has what this client wrote, and is not older than what it has seen, on whatever node.
  response.json(replica.db.prepare('select id, text from note order by id desc limit 50').all());
});

// The rest is what any app has: a table, a page, a beginning and an end.
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { PAGE } from './page.ts';

await pool.query(
  'create table if not exists note (id integer generated always as identity primary key, text text not null)',
);
await replica.waitFor(await middleware.reads.take());

app.get('/', (_request, response) => {
  response.type('html').send(PAGE);
});
app.get('/healthz', (_request, response) => {
  const { isHealthy, reasons } = replica.status();
  response.status(isHealthy ? 200 : 503).json({ healthy: isHealthy, reasons });
});

const { HOST = '127.0.0.1', PORT = '3000' } = process.env;
const server = app.listen(Number(PORT), HOST);
await once(server, 'listening');
console.log(`ready notes http://${HOST}:${(server.address() as AddressInfo).port}`);

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, end);

async function end(): Promise<void> {
  server.close();
  server.closeIdleConnections();
  await once(server, 'close');
  await replica.close();
  await pool.end();
}
