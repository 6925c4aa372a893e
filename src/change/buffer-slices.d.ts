// Buffer's own slicing into strings: toString() without the parsing of its arguments, which at some millions of
// short values a second is most of the cost. Node has had them for ever; @types/node leaves them out.
interface Buffer {
  utf8Slice(start?: number, end?: number): string;
  latin1Slice(start?: number, end?: number): string;
}
