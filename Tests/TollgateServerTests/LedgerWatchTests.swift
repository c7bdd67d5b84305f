// When a ledger is said to have gone backwards, and what is told of it.

import Testing
import TollgateCore
import TollgateTesting

@testable import TollgateServer

@Suite(.blocking) struct LedgerWatchTests {
  private func status(_ positions: String, losses: String = "") throws -> Document {
    try Document(json: "{\"status\":{\"positions\":[\(positions)]},\"losses\":[\(losses)]}")
  }

  private let suspects = [
    2: LedgerWatch.Setback(
      from: StreamPosition(epoch: 7, sequence: 900), to: StreamPosition(epoch: 7, sequence: 10))
  ]

  @Test func aLedgerThatIsStillBehindWentBackwards() throws {
    for positions in [
      "", "{\"bucket\":2,\"epoch\":7,\"cursor\":899}", "{\"bucket\":2,\"epoch\":6,\"cursor\":5000}",
    ] {
      #expect(LedgerWatch.confirmed(suspects, by: try status(positions)) == suspects)
    }
  }

  /// Between the two readings it took a batch, or closed the epoch: nothing is wrong.
  @Test func aLedgerThatWentOnDidNot() throws {
    for positions in [
      "{\"bucket\":2,\"epoch\":7,\"cursor\":900}", "{\"bucket\":2,\"epoch\":8,\"cursor\":0}",
    ] {
      #expect(LedgerWatch.confirmed(suspects, by: try status(positions)).isEmpty)
    }
  }

  /// Recovery may be through before the question is asked; the ledger's own record stays.
  @Test func whatTheLedgerRecordedOfItselfCounts() throws {
    let losses = "{\"bucket\":2,\"epoch\":1,\"first\":0,\"last\":0}"
    let position = "{\"bucket\":2,\"epoch\":8,\"cursor\":4}"
    #expect(LedgerWatch.confirmed(suspects, by: try status(position, losses: losses)) == suspects)
    let other = "{\"bucket\":2,\"epoch\":7,\"first\":3,\"last\":9}"
    #expect(LedgerWatch.confirmed(suspects, by: try status(position, losses: other)).isEmpty)
  }

  @Test func theTextNamesBothPositionsAndWhatToDo() {
    #expect(
      LedgerWatch.text(suspects)
        == "the ledger went backwards from 7/900 to 7/10 in bucket 2: restore its newest copy")
    #expect(LedgerWatch.text([:]) == nil)
  }
}
