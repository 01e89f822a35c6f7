// The official clients of OpenAI and Anthropic read what the scripted server says. What they understand is what the
// server has to mean: they are the judges, not the judged.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { after, before, describe, test } from 'node:test';
import { createInterface } from 'node:readline';

import AnthropicOf2023 from '@anthropic-ai/sdk';
import AnthropicOf2026 from 'anthropic-sdk-1';
import OpenAI, { toFile } from 'openai';

const key = 'sk-oracle-0123456789';
const binary = process.env.CHATBOX_LLMFAKE;
const pixel = 'iVBORw0KGgo=';

// start runs the scripted server with flags and returns its address and a way to end it.
async function start(...flags) {
  const port = 20000 + Math.floor(Math.random() * 10000);
  const child = spawn(binary, ['-addr', `127.0.0.1:${port}`, '-key', key, '-delay', '0s', ...flags], { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  const first = await Promise.race([once(createInterface(child.stdout), 'line'), exited.then(() => null)]);
  if (first === null) return start(...flags); // another program had the port
  const root = /http:\/\/[^/]+/.exec(first[0])[0];
  return {
    root,
    bill: async () => (await fetch(`${root}/__bill`)).json(),
    requests: async () => (await fetch(`${root}/__requests`)).json(),
    reset: () => fetch(`${root}/__reset`, { method: 'POST' }),
    stop: async () => { child.kill('SIGTERM'); await exited; },
  };
}

assert.ok(binary, 'CHATBOX_LLMFAKE names the binary of the scripted server');
let fake, small, openai, cramped;
before(async () => {
  fake = await start('-cache', '100');
  small = await start('-context', '60');
  openai = new OpenAI({ baseURL: `${fake.root}/v1`, apiKey: key, maxRetries: 0 });
  cramped = new OpenAI({ baseURL: `${small.root}/v1`, apiKey: key, maxRetries: 0 });
});
after(async () => { await fake.stop(); await small.stop(); });

const lastLine = async () => (await fake.bill()).lines.at(-1);

// fails runs f and returns the error that it must throw.
async function fails(f) {
  try {
    await f();
  } catch (err) {
    return err;
  }
  throw assert.fail('no error');
}

describe('Chat Completions, as the openai client reads them', () => {
  const call = (content, more) => ({ model: 'fake-1', messages: [{ role: 'user', content }], ...more });
  // chat streams an answer and puts it together.
  async function chat(content, more) {
    const out = { text: '', refusal: '', reasoning: '', finish: null, usage: null, chunks: 0 };
    const stream = await openai.chat.completions.create(call(content, { stream: true, stream_options: { include_usage: true }, ...more }));
    try {
      for await (const chunk of stream) {
        out.chunks++;
        out.usage = chunk.usage ?? out.usage;
        for (const choice of chunk.choices) {
          out.text += choice.delta?.content ?? '';
          out.refusal += choice.delta?.refusal ?? '';
          out.reasoning += choice.delta?.reasoning_content ?? '';
          out.finish = choice.finish_reason ?? out.finish;
        }
      }
    } catch (err) {
      out.error = err;
    }
    return out;
  }

  for (const as of ['', ' as=azure', ' as=openrouter', ' as=llamacpp', ' as=vllm', ' drip=1', ' drip=2']) {
    test(`text and usage${as}`, async () => {
      const got = await chat(`!tokens 3${as}`);
      assert.deepEqual([got.text, got.finish, got.error], ['t1 t2 t3', 'stop', undefined]);
      const line = await lastLine();
      assert.deepEqual([got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens],
        [line.prompt_tokens, line.completion_tokens, line.total_tokens]);
    });
  }

  test('characters of several bytes, torn apart', async () => {
    const words = 'héllo 世界 🙂';
    const got = await chat(`!slow 0 drip=1 ${words}`);
    assert.ok(got.text.includes(words), got.text);
  });

  test('reasons to end', async () => {
    assert.equal((await chat('!length')).finish, 'length');
    assert.equal((await chat('!filter')).finish, 'content_filter');
    const refused = await chat('!refuse');
    assert.deepEqual([refused.text, refused.refusal !== '', refused.finish], ['', true, 'stop']);
    assert.equal((await chat('!tokens 9', { max_completion_tokens: 2 })).text, 't1 t2 ');
    assert.equal((await chat('!nousage')).usage, null);
    assert.equal((await chat('!reason 2')).reasoning, 't1 t2');
  });

  test('an answer that is not streamed, with the helper for streams', async () => {
    const whole = await openai.chat.completions.create(call('!tokens 3'));
    assert.deepEqual([whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.total_tokens], ['t1 t2 t3', 'stop', 13]);
    assert.ok(whole._request_id.startsWith('req_'));
    const final = await openai.chat.completions.stream(call('!tokens 3')).finalChatCompletion();
    assert.equal(final.choices[0].message.content, 't1 t2 t3');
  });

  test('prompts that are read from the cache', async () => {
    const long = 'word '.repeat(300);
    await chat(long);
    const again = await openai.chat.completions.create({ model: 'fake-1', messages: [{ role: 'user', content: long }, { role: 'assistant', content: 'a' }, { role: 'user', content: 'b' }] });
    assert.equal(again.usage.prompt_tokens_details.cached_tokens, 256);
  });

  test('errors inside a stream', async () => {
    for (const as of ['', ' as=vllm', ' as=openrouter']) {
      const got = await chat(`!mid overloaded 2${as}`);
      assert.equal(got.text, 't1 t2');
      assert.ok(got.error instanceof OpenAI.APIError, `${as}: ${got.error}`);
      assert.match(got.error.message, /Overloaded/);
    }
    const quota = await chat('!mid quota');
    assert.equal(quota.error.code, 'insufficient_quota');
  });

  test('streams that end too early', async () => {
    const cut = await chat('!cut 2');
    assert.deepEqual([cut.text, cut.finish, cut.error], ['t1 t2', null, undefined], 'this client does not notice');
    const aborted = await chat('!abort 2 20ms');
    assert.equal(aborted.finish, null);
    assert.ok(aborted.error);
  });

  test('HTTP errors have the types of the client', async () => {
    for (const [command, type, status, code] of [
      ['!error 401', OpenAI.AuthenticationError, 401, 'invalid_api_key'],
      ['!error 403', OpenAI.PermissionDeniedError, 403, null],
      ['!error 404', OpenAI.NotFoundError, 404, 'model_not_found'],
      ['!error 409', OpenAI.ConflictError, 409, null],
      ['!error 422', OpenAI.UnprocessableEntityError, 422, null],
      ['!error 429 retry=2', OpenAI.RateLimitError, 429, 'rate_limit_exceeded'],
      ['!error 429 code=insufficient_quota', OpenAI.RateLimitError, 429, 'insufficient_quota'],
      ['!error 500', OpenAI.InternalServerError, 500, null],
      ['!error 503', OpenAI.InternalServerError, 503, null],
      ['!error 400 code=context_length_exceeded', OpenAI.BadRequestError, 400, 'context_length_exceeded'],
    ]) {
      for (const stream of [false, true]) {
        const err = await fails(() => openai.chat.completions.create(call(command, { stream })));
        assert.ok(err instanceof type, `${command}: ${err}`);
        assert.deepEqual([err.status, err.code], [status, code], command);
        assert.ok(err.requestID.startsWith('req_'));
        if (command.includes('retry')) assert.equal(err.headers.get('retry-after'), '2');
      }
    }
    const wrong = new OpenAI({ baseURL: `${fake.root}/v1`, apiKey: 'sk-wrong', maxRetries: 0 });
    assert.ok(await fails(() => wrong.chat.completions.create(call('a'))) instanceof OpenAI.AuthenticationError);
    const long = await fails(() => cramped.chat.completions.create(call('word '.repeat(60))));
    assert.equal(long.code, 'context_length_exceeded');
    const part = await fails(() => openai.chat.completions.create(call([{ type: 'input_text', text: 'a' }])));
    assert.ok(part instanceof OpenAI.BadRequestError);
    assert.equal(part.param, 'messages[0].content[0].type');
  });

  test('the client obeys what it is told to wait, and tries again', async () => {
    const patient = new OpenAI({ baseURL: `${fake.root}/v1`, apiKey: key, maxRetries: 2 });
    const whole = await patient.chat.completions.create(call('!error 503 retry=0.01 times=2'));
    assert.match(whole.choices[0].message.content, /Hello/);
  });

  test('images and documents', async () => {
    const got = await chat([
      { type: 'text', text: 'look' },
      { type: 'image_url', image_url: { url: `data:image/png;base64,${pixel}` } },
      { type: 'file', file: { filename: 'a.pdf', file_data: `data:application/pdf;base64,${Buffer.from('%PDF-1.7').toString('base64')}` } },
    ]);
    assert.match(got.text, /\*\*2 files\*\*/);
  });

  test('going away is seen, and billed', async () => {
    const stream = await openai.chat.completions.create(call('!stallmid 4', { stream: true }));
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta?.content?.startsWith('t4')) break;
    }
    for (let i = 0; i < 200 && (await lastLine()).outcome === 'running'; i++) await new Promise((done) => setTimeout(done, 10));
    const line = await lastLine();
    assert.deepEqual([line.outcome, line.completion_tokens], ['cancelled', 4]);
  });

  test('models', async () => {
    const ids = [];
    for await (const model of openai.models.list()) ids.push(model.id);
    assert.deepEqual(ids, ['fake-1', 'fake-2']);
  });
});

describe('Responses, as the openai client reads them', () => {
  const call = (input, more) => ({ model: 'fake-1', input, ...more });
  // respond streams an answer with the client's own accumulator.
  async function respond(input, more) {
    const out = { deltas: '', refusal: '', events: [] };
    const stream = openai.responses.stream(call(input, more));
    try {
      for await (const event of stream) {
        out.events.push(event.type);
        if (event.type === 'response.output_text.delta') out.deltas += event.delta;
        if (event.type === 'response.refusal.delta') out.refusal += event.delta;
      }
      out.final = await stream.finalResponse();
    } catch (err) {
      out.error = err;
    }
    return out;
  }

  for (const as of ['', ' drip=1']) {
    test(`text and usage${as}`, async () => {
      const got = await respond(`!tokens 3${as}`);
      assert.equal(got.error, undefined);
      assert.deepEqual([got.deltas, got.final.output_text, got.final.status], ['t1 t2 t3', 't1 t2 t3', 'completed']);
      const line = await lastLine();
      assert.deepEqual([got.final.usage.input_tokens, got.final.usage.output_tokens, got.final.usage.total_tokens],
        [line.prompt_tokens, line.completion_tokens, line.total_tokens]);
    });
  }

  test('an answer that is not streamed', async () => {
    const whole = await openai.responses.create(call('!tokens 3'));
    assert.deepEqual([whole.output_text, whole.status, whole.usage.total_tokens], ['t1 t2 t3', 'completed', 13]);
  });

  test('incomplete, refused, thought about', async () => {
    const short = await respond('!length');
    assert.deepEqual([short.final.status, short.final.incomplete_details.reason, short.events.at(-1)], ['incomplete', 'max_output_tokens', 'response.incomplete']);
    assert.equal((await respond('!filter')).final.incomplete_details.reason, 'content_filter');
    const refused = await respond('!refuse');
    assert.deepEqual([refused.deltas, refused.final.output[0].content[0].type], ['', 'refusal']);
    assert.equal(refused.final.output[0].content[0].refusal, refused.refusal);
    const thought = await respond('!reason 2');
    assert.deepEqual(thought.final.output.map((item) => item.type), ['reasoning', 'message']);
    assert.equal(thought.final.output[0].summary[0].text, 't1 t2');
    assert.equal(thought.final.usage.output_tokens_details.reasoning_tokens, 2);
  });

  test('a generated image, and a file in a container', async () => {
    const image = (await respond('!image')).final.output.find((item) => item.type === 'image_generation_call');
    assert.equal(Buffer.from(image.result, 'base64').subarray(1, 4).toString(), 'PNG');
    const cited = (await respond('!file')).final.output[0].content[0].annotations[0];
    assert.deepEqual([cited.type, cited.filename], ['container_file_citation', 'plot.png']);
    const file = await openai.containers.files.content.retrieve(cited.file_id, { container_id: cited.container_id });
    assert.equal(Buffer.from(await file.arrayBuffer()).subarray(1, 4).toString(), 'PNG');
    const gone = (await respond('!file expired')).final.output[0].content[0].annotations[0];
    assert.ok(await fails(() => openai.containers.files.content.retrieve(gone.file_id, { container_id: gone.container_id })) instanceof OpenAI.NotFoundError);
  });

  test('errors inside a stream', async () => {
    const stream = await openai.responses.create(call('!fail rate 2', { stream: true }));
    let failed;
    for await (const event of stream) if (event.type === 'response.failed') failed = event;
    assert.equal(failed.response.error.code, 'rate_limit_exceeded');
    assert.equal(failed.response.status, 'failed');
    const broken = await respond('!mid overloaded 2');
    assert.equal(broken.deltas, 't1 t2');
    assert.ok(broken.error || broken.events.at(-1) === 'error', 'an event or an exception, as the client likes');
    const long = await cramped.responses.create(call('word '.repeat(60), { stream: true }));
    for await (const event of long) if (event.type === 'response.failed') failed = event;
    assert.equal(failed.response.error.code, 'context_length_exceeded');
  });

  test('HTTP errors', async () => {
    const err = await fails(() => openai.responses.create(call('!error 429 retry=1')));
    assert.ok(err instanceof OpenAI.RateLimitError);
    assert.ok(await fails(() => openai.responses.create({ model: 'm', messages: [] })) instanceof OpenAI.BadRequestError);
    assert.equal((await fails(() => cramped.responses.create(call('word '.repeat(60))))).code, 'context_length_exceeded');
  });

  test('documents', async () => {
    const got = await respond([{ role: 'user', content: [
      { type: 'input_text', text: 'read' },
      { type: 'input_file', filename: 'a.txt', file_data: 'data:text/plain;base64,aGVsbG8=' },
      { type: 'input_image', image_url: `data:image/png;base64,${pixel}`, detail: 'auto' },
    ] }]);
    assert.match(got.deltas, /\*\*2 files\*\*/);
  });
});

describe('audio, as the openai client hears and sends it', () => {
  test('transcription', async () => {
    const file = await toFile(Buffer.from('good morning'), 'voice.webm', { type: 'audio/webm' });
    const got = await openai.audio.transcriptions.create({ model: 'gpt-4o-mini-transcribe', file, language: 'en' });
    assert.deepEqual([got.text, got.usage.type], ['good morning', 'tokens']);
    const bad = await toFile(Buffer.from('a'), 'voice.txt');
    assert.ok(await fails(() => openai.audio.transcriptions.create({ model: 'm', file: bad })) instanceof OpenAI.BadRequestError);
  });

  test('speech', async () => {
    const res = await openai.audio.speech.create({ model: 'gpt-4o-mini-tts', voice: 'alloy', input: 'good morning' });
    assert.equal(res.headers.get('content-type'), 'audio/mpeg');
    assert.ok((await res.arrayBuffer()).byteLength > 3000);
    assert.ok(await fails(() => openai.audio.speech.create({ model: 'm', voice: 'alloy', input: 'a'.repeat(4097) })) instanceof OpenAI.BadRequestError);
  });
});

for (const [version, Anthropic] of [['2023-06-01', AnthropicOf2023], ['2026-10-21', AnthropicOf2026]]) describe(`Messages of ${version}, as the @anthropic-ai/sdk client reads them`, () => {
  let anthropic, crampedClaude;
  before(async () => {
    await fake.reset();
    anthropic = new Anthropic({ baseURL: fake.root, apiKey: key, authToken: null, maxRetries: 0 });
    crampedClaude = new Anthropic({ baseURL: small.root, apiKey: key, authToken: null, maxRetries: 0 });
  });
  const call = (content, more) => ({ model: 'claude-fake', max_tokens: 1000, messages: [{ role: 'user', content }], ...more });
  async function message(content, more) {
    const out = { deltas: '', thinking: '' };
    const stream = anthropic.messages.stream(call(content, more));
    stream.on('text', (delta) => { out.deltas += delta; });
    stream.on('thinking', (delta) => { out.thinking += delta; });
    try {
      out.final = await stream.finalMessage();
    } catch (err) {
      out.error = err;
    }
    return out;
  }

  for (const as of ['', ' as=noise', ' drip=1']) {
    test(`text and usage${as}`, async () => {
      const got = await message(`!tokens 3${as}`);
      assert.equal(got.error, undefined);
      assert.deepEqual([got.deltas, got.final.content[0].text, got.final.stop_reason], ['t1 t2 t3', 't1 t2 t3', 'end_turn']);
      const line = await lastLine();
      assert.deepEqual([got.final.usage.input_tokens, got.final.usage.output_tokens], [line.prompt_tokens, line.completion_tokens]);
      assert.equal((await fake.requests()).at(-1).header['Anthropic-Version'][0], version);
    });
  }

  test('an answer that is not streamed', async () => {
    const whole = await anthropic.messages.create(call('!tokens 3'));
    assert.deepEqual([whole.content[0].text, whole.stop_reason, whole.usage.output_tokens], ['t1 t2 t3', 'end_turn', 3]);
    assert.ok(whole._request_id.startsWith('req_'));
  });

  test('thinking, refusal, length', async () => {
    const thought = await message('!reason 2');
    assert.deepEqual(thought.final.content.map((block) => block.type), ['thinking', 'text']);
    assert.deepEqual([thought.thinking, thought.final.content[0].thinking], ['t1 t2', 't1 t2']);
    assert.ok(thought.final.content[0].signature);
    const refused = await message('!refuse');
    assert.deepEqual([refused.final.content.length, refused.final.stop_reason], [0, 'refusal']);
    assert.equal((await message('!length')).final.stop_reason, 'max_tokens');
    assert.equal((await message('!tokens 9', { max_tokens: 2 })).final.content[0].text, 't1 t2 ');
  });

  test('the prompt cache', async () => {
    const system = [{ type: 'text', text: 'rule '.repeat(120), cache_control: { type: 'ephemeral' } }];
    const first = (await message('one', { system })).final.usage;
    const second = (await message('two', { system })).final.usage;
    assert.deepEqual([first.cache_creation_input_tokens, first.cache_read_input_tokens], [127, 0]);
    assert.deepEqual([second.cache_creation_input_tokens, second.cache_read_input_tokens, second.input_tokens], [0, 127, 5]);
  });

  test('errors inside a stream', async () => {
    const got = await message('!mid overloaded 2');
    assert.equal(got.deltas, 't1 t2');
    assert.ok(got.error instanceof Anthropic.APIError, String(got.error));
    assert.equal(got.error.error.error.type, 'overloaded_error');
  });

  test('streams that end too early', async () => {
    assert.ok((await message('!cut 2')).error, 'the helper for streams notices');
    assert.ok((await message('!abort 2 20ms')).error);
  });

  test('HTTP errors have the types of the client', async () => {
    for (const [command, type, status, name] of [
      ['!error 400', Anthropic.BadRequestError, 400, 'invalid_request_error'],
      ['!error 401', Anthropic.AuthenticationError, 401, 'authentication_error'],
      ['!error 403', Anthropic.PermissionDeniedError, 403, 'permission_error'],
      ['!error 404', Anthropic.NotFoundError, 404, 'not_found_error'],
      ['!error 429 retry=2', Anthropic.RateLimitError, 429, 'rate_limit_error'],
      ['!error 500', Anthropic.InternalServerError, 500, 'api_error'],
      ['!error 529', Anthropic.InternalServerError, 529, 'overloaded_error'],
    ]) {
      const err = await fails(() => anthropic.messages.create(call(command)));
      assert.ok(err instanceof type, `${command}: ${err}`);
      assert.deepEqual([err.status, err.error.error.type], [status, name], command);
      assert.ok(err.requestID.startsWith('req_'));
      if (command.includes('retry')) assert.equal(err.headers.get('retry-after'), '2');
    }
    const large = await fails(() => anthropic.messages.create(call('!error 413')));
    assert.equal(large.status, 413, 'although it is no JSON');
    const wrong = new Anthropic({ baseURL: fake.root, apiKey: 'sk-wrong', maxRetries: 0 });
    assert.ok(await fails(() => wrong.messages.create(call('a'))) instanceof Anthropic.AuthenticationError);
    const long = await fails(() => crampedClaude.messages.create(call('word '.repeat(60), { max_tokens: 1 })));
    assert.match(long.message, /prompt is too long: 67 tokens > 60 maximum/);
    assert.ok(await fails(() => anthropic.messages.create({ ...call('a'), messages: [{ role: 'assistant', content: 'a' }] })) instanceof Anthropic.BadRequestError);
  });

  test('counting, images, documents, files', async () => {
    const counted = await anthropic.messages.countTokens({ model: 'm', messages: [{ role: 'user', content: 'one two' }] });
    assert.equal(counted.input_tokens, 9);
    const got = await message([
      { type: 'image', source: { type: 'base64', media_type: 'image/png', data: pixel } },
      { type: 'document', source: { type: 'text', media_type: 'text/plain', data: 'hello' }, title: 'a' },
      { type: 'text', text: 'read' },
    ]);
    assert.match(got.deltas, /\*\*2 files\*\*/);
    const made = (await message('!file')).final.content.find((block) => block.type === 'bash_code_execution_tool_result');
    const file = await anthropic.beta.files.download(made.content.content[0].file_id);
    assert.equal(Buffer.from(await file.arrayBuffer()).subarray(1, 4).toString(), 'PNG');
  });

  test('models', async () => {
    const ids = [];
    for await (const model of anthropic.models.list()) ids.push(model.id);
    assert.deepEqual(ids, ['fake-1', 'fake-2']);
  });
});
