// The limits of a batch against the frame that carries it.

import NIOCore
import Testing
import TollgateCore
import TollgateEngine
import TollgateTesting
import TollgateWire

@testable import TollgateServer

@Suite(.blocking) struct ShipperLimitsTests {
  private func entries(_ count: Int, body: Int) -> [OutboxEntry] {
    (1...Int64(count)).map {
      OutboxEntry(
        sequence: $0, kind: .usage,
        id: DeltaID(operation: OperationID(high: .max, low: .max), index: 16),
        time: WallTime(milliseconds: 1_795_237_200_000), actual: Quantity.maximum,
        charged: Quantity.maximum, absorbed: -Quantity.maximum,
        body: [UInt8](repeating: 0xFF, count: body))
    }
  }

  private func frameBytes(_ entries: [OutboxEntry]) -> Int {
    var machine = ShipperMachine(limits: Shipper.limits(entriesMax: .max))
    machine.entered(epoch: 1)
    guard case .send(let previous, let batch) = machine.entriesRead(entries) else { return .max }
    var buffer = ByteBuffer()
    buffer.writeFrame(
      DeltaBatch(bucket: 1, epoch: 1, previous: previous, entries: batch), correlation: 1)
    return buffer.readableBytes
  }

  /// batch × delta ≤ frame, for many small deltas, for few large ones, and for the largest one.
  @Test(arguments: [(10_000, 0), (5_000, 200), (300, 4_000), (4, WireLimits.deltaBodyBytesMax)])
  func aBatchFitsItsFrame(_ count: Int, _ body: Int) {
    #expect(frameBytes(entries(count, body: body)) <= WireLimits.frameBytesMax)
  }

  @Test func theCountOfABatchIsWithinTheProtocols() {
    #expect(Shipper.limits(entriesMax: .max).entriesMax == WireLimits.entriesMax)
    #expect(Shipper.limits(entriesMax: 10).entriesMax == 10)
  }

  @Test func anEntryIsNeverHeavierOnTheWireThanItIsCounted() {
    for entry in entries(1, body: 77) {
      #expect(entry.wireBytes <= Shipper.limits(entriesMax: 1).entryBytes + entry.body.count)
    }
  }
}
