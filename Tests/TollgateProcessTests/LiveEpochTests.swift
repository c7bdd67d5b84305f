// An epoch that the ledger issued and nobody opened in Redis, because who asked for it was killed in
// between. The next sidecar must not go on under the epoch before: the ledger has fenced it, and
// what is counted under it would be lost when the bucket is opened at last (promise 3).

import NIOCore
import Testing
import TollgateCore
import TollgateTesting
import TollgateWire

extension LiveTests {
  @Suite(.serialized) struct Epochs {
    @Test func anEpochThatNobodyOpenedLosesNothing() throws {
      let stack = try Stack(
        .init(
          sidecars: 1, buckets: 1, extra: LiveTests.ExactLimit.patient, accounts: ["acme": "big"]))
      var tally = LoadTally()
      let before = try Caller(stack)
      for _ in 0..<5 { #expect(try before.consume("acme/m", ("calls", 1)).isAllowed) }
      tally.admitted["acme calls"] = 5
      try Audit.check(stack, tally, subjects: ["acme/m"])
      stack.sidecar(0)?.kill()

      // Another sidecar of this deployment, speaking the ledger's stream by hand.
      do {
        let other = try WireConnection(.unix(stack.directory.file("ledger.sock")))
        try other.hello(token: "ledger-token", role: .ledger)
        var buffer = ByteBuffer()
        buffer.writeFrame(
          Link(
            deployment: Deployment(id: try Name("live"), buckets: 1, mode: .dev),
            sidecar: try Name("other"), incarnation: 1), correlation: other.nextCorrelation())
        try other.send(buffer)
        let linked = try Linked.decode(try other.frame(.linked, within: 5000))
        let bucket = try #require(linked.buckets.first { $0.bucket == 0 })
        buffer.clear()
        buffer.writeFrame(
          Recover(
            bucket: 0, epoch: bucket.epoch, metaEpoch: bucket.epoch, metaSequence: bucket.cursor),
          correlation: 0)
        try other.send(buffer)
        let request = try PresentRequest.decode(try other.frame(.presentRequest, within: 5000))
        #expect(request.epoch == bucket.epoch)
        buffer.clear()
        buffer.writeFrame(Present(bucket: 0, epoch: request.epoch, entries: []), correlation: 0)
        try other.send(buffer)
        let notice = try EpochNotice.decode(try other.frame(.epoch, within: 5000))
        #expect(notice.epoch == bucket.epoch + 1)
      }

      try stack.startSidecar(0)
      try stack.waitReady(0)
      let after = try Caller(stack)
      // How far the epoch in Redis had come nobody can tell any more: its records count as lost, and
      // an id minted before that was found is refused.
      for _ in 0..<20 {
        let record = try after.record("acme/m", [("calls", 1)])
        guard case .decision(let decision) = try after.answer(record), decision.isAllowed else {
          continue
        }
        tally.admitted["acme calls", default: 0] += 1
      }
      #expect(tally.units("acme", "calls") > 5)
      // Killed as well, before or after it has delivered: what it counted is in Redis.
      try stack.restartSidecar(0)
      try stack.waitReady(0)
      try Audit.check(stack, tally, subjects: ["acme/m"])
    }
  }
}
