// An HTTP service on Node.js with worker threads: an answer is made by one of them from a shared
// buffer that all of them count in by atomics; timers and a pipe to a child process go on all the time.
// Anything that is wrong ends the service.
//
//   node_server.js PORT [WORKERS]
const http = require('http');
const { spawn } = require('child_process');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');

function fail(what) {
  process.stderr.write('node_server: ' + what + '\n');
  process.exit(1);
}

function lines() {
  let text = '';
  for (let i = 0; i < 40; ++i) text += 'line ' + i + ' by a worker\n';
  return text;
}

if (!isMainThread) {
  const counts = new Int32Array(workerData.counts);
  let mine = 0;
  parentPort.on('message', (number) => {
    ++mine;
    if (Atomics.add(counts, workerData.number, 1) !== mine - 1) fail('a count is not what it was');
    parentPort.postMessage({ number, body: lines() });
  });
} else {
  const port = Number(process.argv[2]);
  const count = Number(process.argv[3] || 2);
  const shared = new SharedArrayBuffer(4 * count);
  const waiting = new Map();
  const workers = [];
  for (let i = 0; i < count; ++i) {
    const worker = new Worker(__filename, { workerData: { counts: shared, number: i } });
    worker.on('message', ({ number, body }) => {
      const answer = waiting.get(number);
      if (!answer) fail('nobody asked for ' + number);
      waiting.delete(number);
      answer(body);
    });
    worker.on('exit', () => fail('a worker has ended'));
    workers.push(worker);
  }
  // A child that gives back each line, and a timer that notices when one is missing.
  const echo = spawn('/bin/cat');
  let sent = 0, seen = 0, rest = '';
  echo.stdout.on('data', (data) => {
    const parts = (rest + data).split('\n');
    rest = parts.pop();
    for (const part of parts) if (Number(part) !== ++seen) fail('line ' + part + ' after ' + (seen - 1));
  });
  echo.on('exit', () => fail('the child has ended'));
  let last = process.hrtime.bigint();
  setInterval(() => {
    const now = process.hrtime.bigint();
    if (now < last) fail('the clock went back');
    last = now;
    if (sent - seen > 500) fail('the child does not answer');
    echo.stdin.write(++sent + '\n');
  }, 10);
  let next = 0;
  const server = http.createServer((request, response) => {
    const number = ++next;
    waiting.set(number, (body) => {
      response.writeHead(200, { 'Content-Length': Buffer.byteLength(body) });
      response.end(body);
    });
    workers[number % count].postMessage(number);
  });
  server.keepAliveTimeout = 3600000;
  server.listen(port, '0.0.0.0', () => console.log('ready'));
}
