import { ConfigError } from '../errors.ts';
import { FileStore } from './file-store.ts';
import type { ObjectStore } from './object-store.ts';
import { parseStoreUrl } from './store-url.ts';

/** Where an object store is: what --store and --store-endpoint say. */
export interface StoreLocation {
  /** `file:///directory` or `s3://bucket/prefix`. */
  readonly url: string;
  /** Of an S3 server other than AWS. */
  readonly endpoint?: string | undefined;
}

/** Opens a store; nothing is read or written yet. */
export async function openStore({ url, endpoint }: StoreLocation): Promise<ObjectStore> {
  const parsed = parseStoreUrl(url);
  if (parsed === undefined) {
    throw new ConfigError(`not the URL of an object store: ${JSON.stringify(url.slice(0, 80))}`, {
      hint: "'file:///directory' or 's3://bucket/prefix'",
    });
  }
  if (parsed.kind === 'file') return new FileStore({ url, directory: parsed.directory });
  const { S3Store } = await import('./s3-store.ts');
  return await S3Store.open({ url, bucket: parsed.bucket, prefix: parsed.prefix, endpoint });
}
