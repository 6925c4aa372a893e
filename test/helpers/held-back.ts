import type { Direction } from './tcp-proxy.ts';

/**
 * Holds back what a client sends (`onChunk` of a TcpProxy) from the first chunk on that contains a text: a
 * statement, or the name with which a connection introduces itself. That connection stands still until release();
 * all others go on.
 */
export class HeldBack {
  #text: string | null = null;
  #release: (() => void) | null = null;

  /** The next chunk with this text is held back; one only. */
  arm(text: string): void {
    this.#text = text;
  }

  get isHolding(): boolean {
    return this.#release !== null;
  }

  /** Lets go of what is held, and of the wish to hold anything. */
  release(): void {
    this.#text = null;
    this.#release?.();
    this.#release = null;
  }

  readonly onChunk = (chunk: Buffer, direction: Direction): Buffer | Promise<Buffer> => {
    if (direction === 'to client' || this.#text === null || !chunk.includes(this.#text)) return chunk;
    this.#text = null;
    return new Promise((resolve) => {
      this.#release = () => resolve(chunk);
    });
  };
}
