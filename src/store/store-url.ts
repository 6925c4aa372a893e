import { isAbsolute, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export type ParsedStoreUrl =
  | { readonly kind: 'file'; readonly directory: string }
  | { readonly kind: 's3'; readonly bucket: string; readonly prefix: string };

const BUCKET = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/;
const PREFIX = /^[A-Za-z0-9][A-Za-z0-9._-]*(\/[A-Za-z0-9][A-Za-z0-9._-]*)*$/;

/** Undefined if the text is no store's URL. */
export function parseStoreUrl(text: string): ParsedStoreUrl | undefined {
  const url = URL.parse(text);
  if (url === null || url.search !== '' || url.hash !== '' || url.username !== '' || url.password !== '')
    return undefined;
  if (url.protocol === 'file:') {
    if (url.hostname !== '') return undefined;
    try {
      const directory = fileURLToPath(url);
      return isAbsolute(directory) && directory !== '/'
        ? { kind: 'file', directory: resolve(directory) }
        : undefined;
    } catch {
      return undefined;
    }
  }
  if (url.protocol !== 's3:' || !BUCKET.test(url.hostname)) return undefined;
  const prefix = url.pathname.replace(/^\/+|\/+$/g, '');
  return prefix === '' || PREFIX.test(prefix) ? { kind: 's3', bucket: url.hostname, prefix } : undefined;
}
