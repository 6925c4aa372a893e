import { readFileSync, statSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import type { RivuletError } from '../../src/errors.ts';
import { HttpLink } from '../../src/replica/http-link.ts';
import { downloadSnapshot } from '../../src/replica/snapshot-download.ts';
import { TestReplicator, temporaryDirectory } from '../fanout/test-replicator.ts';
import { waitUntil } from '../helpers/wait-until.ts';

afterEach(() => {
  vi.restoreAllMocks();
});

/** Passes requests on to the replicator, unless `intercept` has answered; notes their ranges. */
async function inFrontOf(
  replicator: TestReplicator,
  intercept: (request: IncomingMessage, response: ServerResponse, body: Buffer) => boolean,
): Promise<{ readonly url: string; readonly ranges: (string | null)[] } & AsyncDisposable> {
  const ranges: (string | null)[] = [];
  const server = createServer(async (request, response) => {
    ranges.push(request.headers.range ?? null);
    const { range, 'if-range': ifRange } = request.headers;
    const answer = await fetch(`${replicator.url}${request.url}`, {
      headers: range === undefined ? {} : { range, 'if-range': String(ifRange) },
    });
    const body = Buffer.from(await answer.arrayBuffer());
    response.setHeaders(answer.headers);
    if (!intercept(request, response, body)) response.writeHead(answer.status).end(body);
  }).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    ranges,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** 5000 bytes, and the end once they are in the file. */
function breakOff(response: ServerResponse, body: Buffer, file: string): void {
  response.writeHead(200).write(body.subarray(0, 5000));
  void waitUntil('the first bytes', () => statSync(file, { throwIfNoEntry: false })?.size === 5000).then(() =>
    response.destroy(),
  );
}

async function download(url: string, file: string): Promise<string[]> {
  const reasons: RivuletError[] = [];
  const link = new HttpLink({ url });
  try {
    await downloadSnapshot({
      link,
      file,
      signal: AbortSignal.timeout(15_000),
      accept: () => undefined,
      onProgress: () => undefined,
      onRetry: (reason) => reasons.push(reason),
    });
  } finally {
    link.close();
  }
  return reasons.map(({ code, message }) => `${code}: ${message}`);
}

test('a download that broke goes on where it was', async () => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using front = await inFrontOf(replicator, (request, response, body) => {
    if (request.headers.range !== undefined) return false;
    breakOff(response, body, file);
    return true;
  });
  expect(await download(front.url, file)).toHaveLength(1);
  expect(front.ranges).toEqual([null, 'bytes=5000-']);
  expect(readFileSync(file)).toEqual(readFileSync(replicator.snapshotPath));
});

test('a snapshot that has come but could not be synced is written anew, not asked for at its end', async () => {
  using dir = temporaryDirectory();
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using front = await inFrontOf(replicator, () => false);
  const handle = await open(replicator.snapshotPath);
  const failing = vi
    .spyOn(Object.getPrototypeOf(handle) as FileHandle, 'sync')
    .mockRejectedValueOnce(Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' }));
  await handle.close();
  const file = join(dir.path, 'app.db');
  expect(await download(front.url, file)).toEqual([expect.stringMatching(/^DISK_FULL/)]);
  expect(failing).toHaveBeenCalledTimes(2);
  expect(front.ranges).toEqual([null, null]);
  // It was not the replicator's snapshot that was wrong.
  expect(replicator.rechecks).toBe(0);
  expect(readFileSync(file)).toEqual(readFileSync(replicator.snapshotPath));
});

test('a rest that is not there makes the download begin anew', async () => {
  using dir = temporaryDirectory();
  const file = join(dir.path, 'app.db');
  await using replicator = await TestReplicator.start({ dir: dir.path });
  await using front = await inFrontOf(replicator, (request, response, body) => {
    if (front.ranges.length > 2) return false;
    if (request.headers.range === undefined) {
      breakOff(response, body, file);
    } else {
      response.setHeader('content-length', 0).writeHead(416).end();
    }
    return true;
  });
  expect(await download(front.url, file)).toEqual([
    expect.stringMatching(/^REPLICATOR_UNREACHABLE/),
    expect.stringMatching(/^PROTOCOL.* 5000 bytes/),
  ]);
  expect(front.ranges).toEqual([null, 'bytes=5000-', null]);
  expect(readFileSync(file)).toEqual(readFileSync(replicator.snapshotPath));
});
