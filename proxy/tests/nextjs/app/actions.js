'use server';

let calls = 0;

// Says which build has executed it, and how often it has done so.
export async function act(argument) {
  calls += 1;
  return { version: process.env.VERSION, bytes: argument.length, calls };
}
