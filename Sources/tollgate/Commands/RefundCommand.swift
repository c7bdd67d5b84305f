// refund: gives back what one operation was charged.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct RefundCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "refund",
    abstract: "Give back what an operation was charged.",
    discussion: """
      The operation is a consume, a post or a settle of the subject, named by its id. Without \
      amounts everything comes back; never more, in all, than was charged. The grants get back \
      last what was burnt first, and rates give back their money. Repeated with the same --id, \
      it is given back once; with another id, again.
      """)

  @Argument(help: ArgumentHelp("account[/member[/run…]]", valueName: "subject"))
  var subject: Subject
  @Argument(help: ArgumentHelp("The id of what is corrected.", valueName: "operation"))
  var corrected: OperationID
  @Argument(help: ArgumentHelp("What comes back of each feature.", valueName: "feature=n"))
  var amounts: [AmountArgument] = []
  @Option(help: "Why; kept with the ledger's entry.")
  var reason: String = ""
  @OptionGroup var attributes: AttributeOptions
  @OptionGroup var operation: OperationOptions
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    try DataPath.checkItems(amounts.map(\.item))
    guard reason.utf8.count <= WireLimits.refundReasonBytesMax else {
      throw ValidationError("--reason has at most \(WireLimits.refundReasonBytesMax) bytes.")
    }
  }

  func run() async throws {
    let id = operation.id ?? DataPath.newID()
    let items = amounts.map(\.item)
    let record = RefundRecord(
      id: id, subject: subject, corrects: corrected, items: items, attributes: attributes.pairs,
      reason: reason)
    try await DataPath(id: id, asked: items, named: ("corrects", corrected)).run(
      .refund, record, connection, output)
  }
}
