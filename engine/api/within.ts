/** Something that was asked has not answered in time. */
export class NoAnswerInTime extends Error {
  override readonly name = 'NoAnswerInTime';
}

/** The answer, or NoAnswerInTime after `timeoutMs`; whoever was asked is not told. */
export async function within<Answer>(timeoutMs: number, answer: Promise<Answer>): Promise<Answer> {
  let timer: NodeJS.Timeout | undefined;
  const tooLong = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new NoAnswerInTime(`No answer within ${timeoutMs} ms.`)), timeoutMs);
  });
  return await Promise.race([answer, tooLong]).finally(() => clearTimeout(timer));
}
