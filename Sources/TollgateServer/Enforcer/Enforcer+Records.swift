// A Redis whose memory is full refuses the scripts that write, and with them the answer to a retry.
// What an operation was answered lies in its record all the same, and reading is not refused: so
// the same id gets the same answer (promise 4). Likewise where only a record may answer an id that
// is older than what this sidecar remembers of leases.

import NIOCore
import TollgateCore
import TollgateRedis

extension Enforcer {
  /// Answers from the record, where there is one. Else `otherwise` is told whether Redis said so:
  /// false, and it could not be asked.
  func answerFromRecord(
    _ request: Request, epoch: Int64, otherwise: @escaping (_ isKnown: Bool) -> Void
  ) {
    guard let connection = link?.connection else { return storeIsAway(request) }
    let bucket = request.bucket
    let slice = OperationSlice.of(request.id.time)
    var missing = RecordClass.allCases.count
    var isAnswered = false
    var isKnown = true
    buckets[bucket].inFlight += 1
    planned += 1
    for recordClass in RecordClass.allCases {
      let key = keys.operations(bucket, recordClass, slice: slice)
      let id = request.id.bytes
      connection.send(
        { RESPWriter.write(["HGET", .string(key), .bytes(id)], to: &$0) },
        completion: { [self] result in
          missing -= 1
          if case .failure = result { isKnown = false }
          if !isAnswered, let record = try? result.get().bytes,
            let reply = DecideReply(record: record, of: request.fingerprint),
            Self.stands(reply, request)
          {
            isAnswered = true
            handle(reply, of: request, wasInDoubt: request.inDoubt, epoch: epoch, at: .now()) { _ in
              []
            }
          }
          guard missing == 0 else { return }
          if !isAnswered { otherwise(isKnown) }
          landed(1, bucket)
        })
    }
  }

  /// Units that were let through elsewhere are still to be counted, although the id was denied.
  private static func stands(_ reply: DecideReply, _ request: Request) -> Bool {
    guard case .replayed(let decided) = reply else { return true }
    return request.mode != .post || decided.decision.isAllowed
      || decided.decision.reason == .cancelled
  }
}
