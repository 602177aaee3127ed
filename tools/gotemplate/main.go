// gotemplate renders chats with Go's own text/template and with the data and functions that Ollama gives to a
// TEMPLATE, so that tests can hold lorafold's Python evaluator and its emitted templates against the real thing.
//
// In, one JSON object a line on standard input: {"template": "...", "cases": [{"today": "YYYY-MM-DD", "data": {...}}]}
// with data {"System": "", "Messages": [{"Role": "", "Content": ""}], "IsThinkSet": false, "Think": false}.
// Out, one line each: {"error": "..."} where it does not parse, else {"results": [{"text": "..."} or {"error": "..."}]}.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role     string
	Content  string
	Thinking string
}

type chat struct {
	System     string
	Messages   []*message
	IsThinkSet bool
	Think      bool
}

type request struct {
	Template string
	Cases    []struct {
		Today string
		Data  chat
	}
}

type result struct {
	Text  *string `json:"text,omitempty"`
	Error string  `json:"error,omitempty"`
}

type answer struct {
	Error   string   `json:"error,omitempty"`
	Results []result `json:"results"`
}

func answerTo(asked request) answer {
	today := ""
	functions := template.FuncMap{
		"currentDate": func() string { return today },
		"json": func(value any) string {
			text, _ := json.Marshal(value)
			return string(text)
		},
	}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(asked.Template)
	if err != nil {
		return answer{Error: err.Error()}
	}
	results := make([]result, 0, len(asked.Cases))
	for _, item := range asked.Cases {
		today = item.Today
		var out strings.Builder
		data := map[string]any{
			"System":     item.Data.System,
			"Messages":   item.Data.Messages,
			"Response":   "",
			"IsThinkSet": item.Data.IsThinkSet,
			"Think":      item.Data.Think,
		}
		if err := parsed.Execute(&out, data); err != nil {
			results = append(results, result{Error: err.Error()})
			continue
		}
		text := out.String()
		results = append(results, result{Text: &text})
	}
	return answer{Results: results}
}

func main() {
	input := bufio.NewReaderSize(os.Stdin, 1<<20)
	output := json.NewEncoder(os.Stdout)
	output.SetEscapeHTML(false)
	for {
		line, err := input.ReadBytes('\n')
		if len(line) == 0 && err != nil {
			return
		}
		var asked request
		if err := json.Unmarshal(line, &asked); err != nil {
			output.Encode(answer{Error: "request: " + err.Error()})
			continue
		}
		output.Encode(answerTo(asked))
	}
}
