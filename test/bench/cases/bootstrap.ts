import { mkdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { blobKey } from '../../../src/store/blob.ts';
import { fetchChunkList } from '../../../src/store/chunk-list.ts';
import { openStore } from '../../../src/store/open-store.ts';
import { readManifest } from '../../../src/store/read-manifest.ts';
import { nodeProgram, type RivuletProcess } from '../../helpers/processes.ts';
import { S3_ENVIRONMENT } from '../../helpers/s3-server.ts';
import type { BenchCase, BenchContext, Sample } from '../bench-case.ts';
import type { DownloadInput, DownloadOutput } from '../limits/download-program.ts';
import { LARGE_POSITION, makeLargeReplica, snapshotter } from '../load/large-replica.ts';
import { monotonicMs } from '../monotonic-clock.ts';
import { processUsage } from '../process-usage.ts';
import { profiling } from '../profile.ts';
import { runProgram } from '../program.ts';

/** Nobody listens there: the file comes from the store alone. */
const NO_REPLICATOR = 'http://127.0.0.1:9';

/** A snapshot in an object store, and its chunks as anybody can read them. */
interface StoredSnapshot {
  readonly name: string;
  readonly environment: Readonly<Record<string, string>>;
  readonly objects: readonly string[];
  readonly chunkBytes: number;
  readonly target: number;
}

export const bootstrap: BenchCase = {
  name: 'bootstrap',
  title: 'a new replica from an object store, process start to ready',
  async prepare(context) {
    const file = join(context.directory, 'original.db');
    makeLargeReplica(file, context.sizes.storedFileBytes);
    const { size } = statSync(file);
    Object.assign(process.env, S3_ENVIRONMENT);
    const s3 = nodeProgram(join(import.meta.dirname, '../load/s3-program.ts'), []);
    try {
      const endpoint = await s3.ready;
      const directory = join(context.directory, 'store');
      const stores = [
        await put(file, {
          name: 'file store',
          url: pathToFileURL(directory).href,
          objects: `${directory}/`,
          target: 0.8,
        }),
        await put(file, {
          name: 'S3 on loopback',
          url: 's3://bucket/r',
          endpoint,
          objects: `${endpoint}/bucket/r/`,
          target: 0.7,
        }),
      ];
      rmSync(file);
      return {
        async run() {
          const samples: Sample[] = [];
          for (const store of stores) samples.push(...(await measure(context, store, size, s3)));
          return samples;
        },
        [Symbol.asyncDispose]: () => s3[Symbol.asyncDispose](),
      };
    } catch (error) {
      await s3[Symbol.asyncDispose]();
      throw error;
    }
  },
};

async function put(
  file: string,
  place: {
    readonly name: string;
    readonly url: string;
    readonly endpoint?: string;
    /** What stands in front of a key where the objects are read from. */
    readonly objects: string;
    readonly target: number;
  },
): Promise<StoredSnapshot> {
  const { name, url, endpoint, objects, target } = place;
  await using store = await openStore({ url, endpoint });
  const take = await snapshotter(store);
  const { snapshot } = await take(file, LARGE_POSITION);
  if ((await readManifest(store)) === null) throw new Error(`nothing is in ${url}`);
  const { chunks, chunkBytes } = await fetchChunkList(store, snapshot);
  return {
    name,
    environment: {
      ...S3_ENVIRONMENT,
      RIVULET_STORE: url,
      ...(endpoint === undefined ? {} : { RIVULET_STORE_ENDPOINT: endpoint }),
    },
    objects: chunks.map(([hash]) => objects + blobKey('chunks', hash)),
    chunkBytes,
    target,
  };
}

async function measure(
  context: BenchContext,
  { name, environment, objects, chunkBytes, target }: StoredSnapshot,
  bytes: number,
  s3: RivuletProcess,
): Promise<Sample[]> {
  const directory = join(context.directory, 'bootstrapped');
  const rate = (ms: number): number => bytes / 1e6 / (ms / 1000);
  const limit = `${name}: plain download + decompression into a file`;
  context.say(`${name}: plain download`);
  const plain = async (file: string | null): Promise<Awaited<ReturnType<typeof download>>> => {
    mkdirSync(directory);
    const result = await download({ objects, chunkBytes, file });
    rmSync(directory, { recursive: true });
    if (result.output.bytes !== bytes) throw new Error(`${result.output.bytes} of ${bytes} bytes came`);
    return result;
  };
  const before = await plain(join(directory, 'plain.db'));
  const nowhere = await plain(null);
  context.say(`${name}: bootstrap`);
  mkdirSync(directory);
  const s3CpuSeconds = (): number => processUsage('s3', s3.pid)?.cpuSeconds ?? 0;
  const s3Before = s3CpuSeconds();
  const startedMs = monotonicMs();
  await using replica = nodeProgram(
    context.program,
    [
      'replica',
      '--file',
      join(directory, 'replica.db'),
      '--replicator',
      NO_REPLICATOR,
      '--log-level',
      'error',
    ],
    {
      ...environment,
      ...profiling('bootstrap', context.profile),
    },
  );
  await replica.ready;
  const ms = monotonicMs() - startedMs;
  const usage = [processUsage('replica', replica.pid)].flatMap((each) => each ?? []);
  const server = { name: 's3', cpuSeconds: s3CpuSeconds() - s3Before };
  await replica.kill('SIGTERM');
  rmSync(directory, { recursive: true });
  // What the memory for a gigabyte costs differs from one moment to the next: the limit is taken on both sides.
  context.say(`${name}: plain download again`);
  const after = await plain(join(directory, 'plain.db'));
  return [
    {
      metric: limit,
      unit: 'MB/s',
      value: rate((before.processMs + after.processMs) / 2),
      usage: [after.usage],
    },
    {
      metric: `${name}: the same to nowhere`,
      unit: 'MB/s',
      value: rate(nowhere.processMs),
      limit,
      usage: [nowhere.usage],
    },
    {
      metric: `${name}: bootstrap`,
      unit: 'MB/s',
      value: rate(ms),
      limit,
      target: { ofLimit: target },
      usage: [...usage, ...(server.cpuSeconds < 0.01 ? [] : [{ ...server, peakRssBytes: null }])],
    },
  ];
}

async function download(input: DownloadInput): ReturnType<typeof runProgram<DownloadOutput>> {
  return await runProgram<DownloadOutput>(
    'plain download',
    new URL('../limits/download-program.ts', import.meta.url),
    input,
  );
}
