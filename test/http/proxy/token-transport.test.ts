import { expect, test } from 'vitest';
import { TokenTransport } from '../../../src/http/proxy/token-transport.ts';
import { encodeToken, type Position } from '../../../src/token.ts';

test('each position gets its own token, whichever was the last one', () => {
  const tokens = new TokenTransport();
  const positions: Position[] = [
    { epoch: 'e1', lsn: 100n, seen: 200n },
    { epoch: 'e1', lsn: 100n, seen: 300n },
    { epoch: 'e1', lsn: 100n },
    { epoch: 'e1', lsn: 101n },
    { epoch: 'e2', lsn: 101n },
  ];
  for (const position of positions) expect(tokens.headers(position, false)[3]).toBe(encodeToken(position));
});
