import { isMarkedAsUntransferable } from 'node:worker_threads';

/** The garbage collector has less to do with a small one than this would take. */
const LEAST_BYTES = 16 * 1024;

/**
 * Frees a buffer that nobody uses any more, now, with all else that lies in the same memory. Left to the garbage
 * collector, which only some 64 MB of such memory set going, it would be gone some time; and what the system's
 * allocator has once handed out it seldom gets back. Node's own pool, which many small buffers share, is left alone:
 * https://nodejs.org/api/worker_threads.html#worker_threadsmarkasuntransferableobject
 */
export function giveBack({ buffer }: Buffer): void {
  if (!(buffer instanceof ArrayBuffer) || buffer.byteLength < LEAST_BYTES) return;
  if (!isMarkedAsUntransferable(buffer)) buffer.transfer(0);
}
