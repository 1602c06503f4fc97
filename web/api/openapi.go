package api

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/Morphux/quarry/web"
)

// headerAbout says what the headers of answers are.
var headerAbout = map[string]string{
	"Link":          "the next page, with rel=\"next\" (RFC 8288)",
	"ETag":          "what If-None-Match takes",
	"Content-Range": "which part it is",
	"Location":      "where it is",
	"Quarry-Exit":   "the verb's exit code: 0, or 6 when a build did not succeed; behind the body (a trailer) where that was sent as it came",
}

// tags group the calls, in this order.
var tags = [][2]string{
	{"tasks", "Hand in a package and have it built"}, {"builds", "Builds, their logs, and why they failed"}, {"events", "What happens"},
	{"records", "What is recorded: the distribution"}, {"farm", "What the farm is and does"}, {"verbs", "Every verb of the farm, as over SSH"}, {"about", "About these calls"},
}

// document writes the OpenAPI document of the routes.
func (a *API) document() ([]byte, error) {
	s := &schemas{components: map[string]any{}, names: map[reflect.Type]string{}}
	problem := map[string]any{"application/problem+json": map[string]any{"schema": s.of(reflect.TypeFor[web.Problem]())}}
	paths := map[string]map[string]any{}
	for _, rt := range a.routes {
		op := map[string]any{"operationId": rt.id, "tags": []string{rt.tag}, "summary": rt.short, "responses": map[string]any{}}
		if rt.long != "" {
			op["description"] = rt.long
		}
		var params []any
		for _, p := range rt.params {
			one := map[string]any{"in": p.in, "name": p.name, "description": p.about, "schema": s.resolve(p.schema)}
			if p.required {
				one["required"] = true
			}
			params = append(params, one)
		}
		if params != nil {
			op["parameters"] = params
		}
		if rt.body != nil {
			op["requestBody"] = map[string]any{"required": rt.body.required, "content": s.content(rt.body.types)}
		}
		responses := op["responses"].(map[string]any)
		for _, ans := range rt.answers {
			one := map[string]any{"description": ans.about}
			if ans.types != nil {
				one["content"] = s.content(ans.types)
			}
			headers := map[string]any{}
			for _, name := range ans.headers {
				headers[name] = map[string]any{"description": headerAbout[name], "schema": text}
			}
			if len(headers) > 0 {
				one["headers"] = headers
			}
			responses[strconv.Itoa(ans.status)] = one
		}
		if rt.method == http.MethodGet && len(rt.answers) > 0 && strings.Contains(strings.Join(rt.answers[0].headers, " "), "ETag") {
			responses["304"] = map[string]any{"description": "the client has it"}
		}
		for _, status := range rt.errors {
			responses[strconv.Itoa(status)] = map[string]any{"description": http.StatusText(status), "content": problem}
		}
		responses["default"] = map[string]any{"description": "an error (RFC 9457): a token that is missing or not good (401), what the caller may not do (403), too much at once (429, 503), ...", "content": problem}
		if rt.need == 0 && rt.method == http.MethodGet {
			op["security"] = []any{map[string]any{}, map[string]any{"token": []string{}}}
		}
		if paths[rt.path] == nil {
			paths[rt.path] = map[string]any{}
		}
		paths[rt.path][strings.ToLower(rt.method)] = op
	}
	var tagList []any
	for _, t := range tags {
		tagList = append(tagList, map[string]any{"name": t[0], "description": t[1]})
	}
	doc := map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{"title": "Quarry", "version": a.farm.Version, "description": "The calls of a Quarry build farm. See doc/rest.md.",
			"license": map[string]any{"name": "Apache-2.0", "identifier": "Apache-2.0"}},
		"servers":  []any{map[string]any{"url": a.opts.URL}},
		"tags":     tagList,
		"paths":    paths,
		"security": []any{map[string]any{"token": []string{}}},
		"components": map[string]any{
			"securitySchemes": map[string]any{"token": map[string]any{"type": "http", "scheme": "bearer", "description": "made with quarry token add"}},
			"schemas":         s.components,
		},
	}
	data, err := json.MarshalIndent(doc, "", " ")
	return append(data, '\n'), err
}

func (s *schemas) content(types map[string]any) map[string]any {
	out := map[string]any{}
	for kind, schema := range types {
		one := map[string]any{}
		if schema != nil {
			one["schema"] = s.resolve(schema)
		}
		out[kind] = one
	}
	return out
}
