import { expect, test } from 'vitest';
import {
  type FollowedPublication,
  judgePublication,
  type PublicationIdentity,
} from '../../src/source/publication.ts';

const NOW: PublicationIdentity = { oid: 7, alteredBy: 100, unpublished: [] };

test.each<[string, FollowedPublication | null, PublicationIdentity | null, string | null]>([
  ['as it was', { oid: 7, alteredBy: 100 }, NOW, null],
  ['of which only the OID counts', { oid: 7, alteredBy: null }, { ...NOW, alteredBy: 101 }, null],
  ['of a history of before', null, NOW, null],
  ['gone', { oid: 7, alteredBy: 100 }, null, 'PUBLICATION'],
  ['gone, of a history of before', null, null, 'PUBLICATION'],
  ['that leaves something out', null, { ...NOW, unpublished: ['update'] }, 'PUBLICATION'],
  ['made anew', { oid: 6, alteredBy: null }, NOW, 'POSITION_GAP'],
  ['altered, and as it was again', { oid: 7, alteredBy: 99 }, NOW, 'POSITION_GAP'],
])('a publication %s', (_, followed, now, code) => {
  expect(judgePublication('p', followed, now)?.code ?? null).toBe(code);
});
