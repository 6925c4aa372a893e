import { createHash } from 'node:crypto';
import { hostname } from 'node:os';

/** What a follower is known by: the same file or directory on the same host is the same one, whatever its name. */
export function followerId(path: string, kind = ''): string {
  return createHash('sha256')
    .update(`${hostname()}\0${kind === '' ? '' : `${kind}\0`}${path}`)
    .digest('hex')
    .slice(0, 20);
}
