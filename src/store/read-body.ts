import type { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { finished } from 'node:stream/promises';
import { giveBack } from '../change/give-back.ts';

/**
 * Into one piece of memory where its size is known (not NaN): what node:stream and the SDK have for it copies
 * everything once more. The pieces that come are freed as they are copied. Throws if it breaks off.
 */
export async function readBody(body: Readable, length: number): Promise<Buffer> {
  if (Number.isNaN(length)) return await buffer(body);
  const bytes = Buffer.allocUnsafeSlow(length);
  let at = 0;
  body.on('data', (part: Buffer) => {
    at += part.copy(bytes, at);
    giveBack(part);
  });
  await finished(body);
  if (at !== length) throw new Error(`${at} of ${length} bytes came`);
  return bytes;
}
