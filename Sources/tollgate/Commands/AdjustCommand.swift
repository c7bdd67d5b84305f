// adjust: an operator's correction of the bill.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct AdjustCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "adjust", abstract: "Correct what an account is billed, up or down.",
    discussion: """
      The counters of months and longer move with the bill; those of an hour or a day do not: \
      `reset` starts them anew. A month that is closed takes it as an adjustment beside its \
      numbers. To give back an operation, use `refund`: it knows what was charged.
      """)

  @Argument(help: "The account.") var account: Subject
  @Argument(help: "The feature.") var feature: Name
  @Argument(help: "Units, with their sign: +100, -30.") var amount: SignedAmount

  @Option(help: ArgumentHelp("The billing month; the running one.", valueName: "YYYY-MM"))
  var period: String?

  @Option(help: ArgumentHelp("The operation that is corrected.", valueName: "hex"))
  var operation: OperationID?

  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    if period != nil && operation != nil {
      throw ValidationError("--period and --operation exclude each other.")
    }
  }

  func run() async throws {
    let options = try flags.options(
      waitMilliseconds: connection.timeoutMilliseconds, reasonRequired: true)
    try await Changing.run(
      .adjust,
      AdjustRequest(
        subject: account, feature: feature, amount: amount.value, period: period,
        corrects: operation, change: options), options, connection, output)
  }
}

/// A sign is required: nobody types an adjustment in the wrong direction by leaving it out.
struct SignedAmount: ExpressibleByArgument {
  var value: Int64

  init?(argument: String) {
    guard let sign = argument.first, sign == "+" || sign == "-" || sign == "−",
      let amount = Int64(argument.dropFirst()), amount > 0, amount <= Quantity.maximum,
      argument.dropFirst().utf8.allSatisfy({ (0x30...0x39).contains($0) })
    else { return nil }
    value = sign == "+" ? amount : -amount
  }

  /// `tollgate adjust ACCOUNT FEATURE -30`: a minus sign in front of digits would be read as an
  /// option, the sign of print would not.
  static func spared(_ arguments: some Sequence<String>) -> [String] {
    let words = Array(arguments)
    guard words.first == AdjustCommand.configuration.commandName else { return words }
    return words.map { word in
      let digits = word.dropFirst().utf8
      guard word.first == "-", !digits.isEmpty, digits.allSatisfy({ (0x30...0x39).contains($0) })
      else { return word }
      return "−" + word.dropFirst()
    }
  }
}
