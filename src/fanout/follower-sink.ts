/** Where one follower's bytes go. Buffers given to `write` are shared and never change. */
export interface FollowerSink {
  /** False: it holds enough for now; `onDrain` will be called once it is empty. The bytes are taken all the same. */
  write(bytes: Buffer): boolean;
  /** Bytes taken that have not left this process. */
  readonly bufferedBytes: number;
  /** Set by the follower's stream. */
  onDrain: () => void;
  /** The other side is gone. Set by the follower's stream. */
  onGone: () => void;
  /** No more bytes come. What was written still goes out, unless the other side does not read. */
  end(): void;
  /** Ends at once. */
  destroy(): void;
}
