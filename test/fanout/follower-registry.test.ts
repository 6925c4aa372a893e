import { expect, test } from 'vitest';
import { FollowerRegistry, type RelayedFollower } from '../../src/fanout/follower-registry.ts';

const LAG = { p50: 1, p99: 2, last: 1 };
const T = Date.UTC(2026, 10, 21);

function relayed(id: string, more: Partial<RelayedFollower> = {}): RelayedFollower {
  return {
    id,
    name: `name of ${id}`,
    via: null,
    state: 'live',
    position: '0/2000',
    lagMs: LAG,
    connectedAt: new Date(T).toISOString(),
    lastSeenAt: new Date(T).toISOString(),
    ...more,
  };
}

function registryWithRelays(...relays: string[]): FollowerRegistry {
  const registry = new FollowerRegistry();
  for (const id of relays) {
    registry.connected({ id, name: id.toUpperCase(), position: 0x2000n, nowMs: T });
    registry.changed(id, 'live');
  }
  return registry;
}

const seen = (registry: FollowerRegistry, id: string): unknown => {
  const found = registry.status(0x3000n).find((each) => each.id === id);
  return found === undefined ? null : { via: found.via, state: found.state };
};

test('knows who follows a relay, and by which way', () => {
  const registry = registryWithRelays('r1');
  const followers = [relayed('a'), relayed('b', { via: 'CITY' })];
  registry.report('r1', { position: 0x2000n, followers }, T, 0);
  expect(seen(registry, 'a')).toEqual({ via: 'R1', state: 'live' });
  expect(seen(registry, 'b')).toEqual({ via: 'R1 > CITY', state: 'live' });
  expect(registry.status(0x3000n).find(({ id }) => id === 'a')).toMatchObject({
    lagBytes: 0x1000,
    lagMs: LAG,
  });
});

test('of followers of a relay that is gone nothing is known', () => {
  const registry = registryWithRelays('r1');
  registry.report('r1', { position: 0x2000n, followers: [relayed('a')] }, T, 0);
  registry.changed('r1', 'gone');
  expect(seen(registry, 'a')).toEqual({ via: 'R1', state: 'unknown' });
});

test('one that moves is where it was seen last, whatever the relay before remembers of it', () => {
  const registry = registryWithRelays('r1', 'r2');
  const later = (ms: number): string => new Date(T + ms).toISOString();
  registry.report('r1', { position: 0x2000n, followers: [relayed('a')] }, T, 0);
  registry.report('r2', { position: 0x2000n, followers: [relayed('a', { lastSeenAt: later(5000) })] }, T, 0);
  expect(seen(registry, 'a')).toEqual({ via: 'R2', state: 'live' });
  registry.report('r1', { position: 0x2000n, followers: [relayed('a', { state: 'gone' })] }, T, 0);
  expect(seen(registry, 'a')).toEqual({ via: 'R2', state: 'live' });
  // Here.
  registry.connected({ id: 'a', name: 'a', position: 0x2000n, nowMs: T + 6000 });
  registry.report('r2', { position: 0x2000n, followers: [relayed('a', { lastSeenAt: later(9000) })] }, T, 0);
  expect(seen(registry, 'a')).toEqual({ via: null, state: 'catching-up' });
  // And back at a relay.
  registry.changed('a', 'gone');
  registry.report('r1', { position: 0x2000n, followers: [relayed('a', { lastSeenAt: later(9500) })] }, T, 0);
  expect(seen(registry, 'a')).toEqual({ via: 'R1', state: 'live' });
});
