import { open, readFile } from 'node:fs/promises';
import { Agent, get } from 'node:http';
import { promisify } from 'node:util';
import { type ZstdOptions, zstdDecompress } from 'node:zlib';
import { program } from '../program.ts';

export interface DownloadInput {
  /** Paths, or addresses of an HTTP server. */
  readonly objects: readonly string[];
  /** Of the content of each, but the last. */
  readonly chunkBytes: number;
  /** Null: what came is thrown away. */
  readonly file: string | null;
}

export interface DownloadOutput {
  readonly ms: number;
  readonly bytes: number;
}

/** As many as a bootstrap has on their way. */
const AT_ONCE = 8;

const decompress = promisify<Buffer, ZstdOptions, Buffer>(zstdDecompress);
const agent = new Agent({ keepAlive: true, maxSockets: AT_ONCE });

/** Reads objects, several at once, decompresses them on the thread pool and writes them to a file; checks nothing. */
await program(async ({ objects, chunkBytes, file }: DownloadInput): Promise<DownloadOutput> => {
  const output = file === null ? null : await open(file, 'w');
  const startedMs = performance.now();
  let next = 0;
  let bytes = 0;
  const bring = async (): Promise<void> => {
    while (next < objects.length) {
      const index = next++;
      // Into one piece of memory, which takes half of the processor's time that many do.
      const content = await decompress(await read(objects[index]!), { chunkSize: chunkBytes + 64 });
      await output?.write(content, 0, content.length, index * chunkBytes);
      bytes += content.length;
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, bring));
  await output?.sync();
  const ms = performance.now() - startedMs;
  await output?.close();
  agent.destroy();
  return { ms, bytes };
});

function read(object: string): Promise<Buffer> {
  if (!object.startsWith('http:')) return readFile(object);
  return new Promise((resolve, reject) => {
    get(object, { agent }, (response) => {
      const parts: Buffer[] = [];
      response.on('data', (part: Buffer) => parts.push(part));
      response.on('error', reject);
      response.on('end', () => {
        if (response.statusCode === 200) resolve(Buffer.concat(parts));
        else reject(new Error(`${object}: ${response.statusCode}`));
      });
    }).on('error', reject);
  });
}
