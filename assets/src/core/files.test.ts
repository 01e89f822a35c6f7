import { filesOf } from './files';

const links = (value: unknown) => filesOf({ links: typeof value === 'string' ? value : JSON.stringify(value) }).links;

// Promise 42: nothing that came from elsewhere can run in a browser.
test('links are https addresses and nothing else', () => {
  for (const url of ['javascript:alert(1)', 'http://h/x', 'data:text/html,x', '//h/x', '/x', 'https://user:pw@h/x', 'https://', '', 7, null]) {
    expect(links([{ name: 'a', url }])).toEqual([]);
  }
  expect(links([{ name: 'a.pdf', url: 'https://files.example/a?x=1' }])).toEqual([{ name: 'a.pdf', host: 'files.example', url: 'https://files.example/a?x=1' }]);
});

test('a link without a name is called by its host', () => {
  for (const name of [undefined, '', ' ', 7]) expect(links([{ name, url: 'https://files.example/a' }])[0]?.name).toBe('files.example');
});

test('rubbish is left out', () => {
  for (const rubbish of ['{', '7', '{"url":"https://h"}', '[null,7,"x",[]]']) expect(links(rubbish)).toEqual([]);
});

test('ids are told apart, and lost files are known by name where they have one', () => {
  expect(filesOf({ file_ids: 'a  b', files_lost: '[file a.pdf]\n[file]' })).toMatchObject({ ids: ['a', 'b'], lost: ['a.pdf', ''] });
  expect(filesOf({})).toEqual({ ids: [], links: [], lost: [] });
});
